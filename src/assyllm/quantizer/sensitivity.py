"""The folder of scores and moments that allocation and compensated rounding read: made once, budgets are a sweep.

``blocks/<model>_<first>-<last>.safetensors`` holds ``<score>|<path>`` [out] and ``moments|<path>`` [in, in] float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from assyllm.artifacts import ArtifactError, check_apart, manifest_sha, output_folder
from assyllm.blocks.pool import POOL, Pool
from assyllm.params import Sensitivity
from assyllm.quantizer.calibrate import batches, native_inputs, second_moments
from assyllm.quantizer.scores import scores

SEED = 0  # of probes and noise: one pool, one set of scores


def write_sensitivity(pool: Path, out: Path, lines: Sequence[str], max_tokens: int, settings: Sensitivity) -> None:
    """Measure every block of a pool that is not quantized.

    Args:
        lines: public texts.

    Raises:
        ArtifactError: a weight that is not finite, no texts, or ``out`` is a pool; nothing is written then.
    """
    pool, out = Path(pool), Path(out)
    source = Pool.open(pool)
    measured = {"pool": manifest_sha(pool)}
    check_apart(out, pool)
    if (out / POOL).is_file():
        raise ArtifactError(f"{out}: a pool; nothing is written")
    with output_folder(out) as folder:
        (folder / "blocks").mkdir()
        for model in source.models:
            first = batches(source, model, lines, max_tokens)
            for info, block, received in native_inputs(source, model, first):
                found = scores(block, received, settings.scores, settings.group_size, settings.probes, SEED)
                tensors = {f"{name}|{path}": value for name, rows in found.items() for path, value in rows.items()}
                if settings.moments:
                    moments = second_moments(block, received)
                    tensors |= {f"moments|{path}": value for path, value in moments.items()}
                save_file(tensors, folder / info.file, measured)
            print(f"sensitivity {model}: {len(source.of_model(model))} blocks", flush=True)
