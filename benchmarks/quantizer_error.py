"""Output error of quantized blocks at equal bytes: our mix, INT4 + INT8 by layer, plain rounding, GPTQ-style rounding.

    python benchmarks/quantizer_error.py --pool data/pool/base/zoo0 --texts data/tasks/base/boolq/public.txt
    python benchmarks/quantizer_error.py --model FOLDER --texts FILE      (a Llama in transformers' format)

Every budget is the bytes that INT4 + INT8 by layer really took, so that all rows of a budget are equal in bytes (the
others may be smaller by less than one row). Half of the texts calibrate, the other half measure. Geometric mean over
blocks of the root mean square relative output error.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from assyllm import params as P
from assyllm.artifacts import output_folder
from assyllm.blocks.pool import Pool, write_model, write_pool
from assyllm.params import Blocks, Quantize, Sensitivity
from assyllm.quantizer.error import pool_errors
from assyllm.quantizer.pool import open_pool, quantize_pool
from assyllm.quantizer.sensitivity import write_sensitivity
from assyllm.zoo.cards import ModelCard, write_card
from assyllm.zoo.load import load_model

FOUR_EIGHT, ALL = [4, 8], [3, 4, 5, 6, 8, 16]
ROWS = {  # name -> what it changes in the section `quantize`
    "INT4 + INT8 by layer": {"scheme": "layerwise", "widths": FOUR_EIGHT, "rounding": "nearest"},
    "the same, GPTQ-style": {"scheme": "layerwise", "widths": FOUR_EIGHT, "rounding": "compensated"},
    "paper's two thresholds": {"scheme": "paper", "rounding": "nearest"},
    "mix of INT4 and INT8 rows": {"scheme": "mixed", "widths": FOUR_EIGHT, "rounding": "nearest"},
    "the same, compensated": {"scheme": "mixed", "widths": FOUR_EIGHT, "rounding": "compensated"},
    "our mix": {"scheme": "mixed", "widths": ALL, "rounding": "nearest"},
    "our mix, compensated": {"scheme": "mixed", "widths": ALL, "rounding": "compensated"},
}


def pool_of(folder: Path, model: Path) -> Path:
    """A pool of one local Llama."""
    loaded = load_model(model)
    with output_folder(folder / "model") as out:
        for file in model.iterdir():
            (out / file.name).write_bytes(file.read_bytes())
        card = ModelCard(name="model", family="llama", stands_for="llama-7b", source="local", origin=str(model.name),
                         licence="MIT", parameters=sum(p.numel() for p in loaded.parameters()), weights_sha256="",
                         seed=0)  # fmt: skip
        write_card(out, card)
    with output_folder(folder / "pool") as out:
        blocks = Blocks(edge_to_middle=2.0, blocks_per_model=4)
        write_pool(out, {"model": write_model(out, "model", "llama", folder / "model", blocks)})
    return folder / "pool"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--number", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--scores", nargs="*", default=["output"])
    parser.add_argument("--extra", type=float, nargs="*", default=[0.3, 0.7, 1.4, 2.4], help="bits above the floor")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [line for line in given.texts.read_text(encoding="utf-8").splitlines() if len(line.split()) > 1]
    lines = lines[:: max(1, len(lines) // given.number)][: given.number]
    tuning, held = lines[::2], lines[1::2]
    base = P.load(Path("params.yaml"))
    names = sorted({*given.scores, "sparsity", "masking", "correlation"})
    learnt = Sensitivity.model_validate(
        base.sensitivity.model_dump() | {"scores": names, "group_size": given.group_size, "moments": True}
    )
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        pool = given.pool if given.pool is not None else pool_of(work, given.model)
        write_sensitivity(pool, work / "sensitivity", tuning, given.max_tokens, learnt)
        exact = Pool.open(pool)
        weights = sum(exact.info(block).parameters for block in exact.ids)

        def run(changes: dict) -> tuple[float, float]:
            values = base.quantize.model_dump() | {"group_size": given.group_size} | changes
            settings = Quantize.model_validate(values)
            quantize_pool(pool, work / "low", settings, work / "sensitivity")
            low = open_pool(work / "low")
            found = pool_errors(exact, low, held, given.max_tokens)
            return 8 * low.bytes / weights, float(np.exp(np.mean(np.log(list(found.values())))))

        floor, plain = run({"scheme": "uniform", "bits": 4, "rounding": "nearest"})
        _, gptq = run({"scheme": "uniform", "bits": 4, "rounding": "compensated"})
        print(f"INT4: {floor:.3f} bits, plain {plain:.5f}, GPTQ-style {gptq:.5f}", flush=True)
        for extra in given.extra:
            budget = None
            for name, changes in ROWS.items():
                for score in given.scores if changes["scheme"] == "mixed" else given.scores[:1]:
                    bits, error = run(changes | {"score": score, "budget_bits": budget or floor + extra})
                    budget = budget or bits
                    print(f"{bits:7.3f} bits  {name:28s} {score:12s} {error:.5f}", flush=True)
        bits, error = run({"scheme": "uniform", "bits": 8, "rounding": "nearest"})
        print(f"INT8: {bits:.3f} bits, plain {error:.5f}")


if __name__ == "__main__":
    main()
