"""Stage ``quantize``: the pool at low precision."""

from __future__ import annotations

from pathlib import Path

from assyllm.params import parse_sections

SECTIONS = ("quantize",)
CODE = ("params/pool.py",)  # which widths and scores a pool reads (study.code_sha)


def run(params: str, code_sha: str, pool: Path, sensitivity: Path | None, out: Path) -> None:
    """Write ``out``, the pool as the section ``quantize`` says."""
    p = parse_sections(params, SECTIONS)
    import torch

    from assyllm.quantizer.pool import open_pool, quantize_pool

    torch.set_num_threads(1)
    quantize_pool(Path(pool), Path(out), p.quantize, None if sensitivity is None else Path(sensitivity))
    made = open_pool(Path(out))
    weights = sum(made.info(block).parameters for block in made.ids)
    print(f"quantize: {made.bytes / 1e6:.2f} MB, {8 * made.bytes / weights:.2f} bits a weight", flush=True)
