"""Stage ``sensitivity``: what the pool's blocks feel of their weights, measured once on the server's public text."""

from __future__ import annotations

from pathlib import Path

from assyllm.params import parse_sections

SECTIONS = ("tasks", "sensitivity")


def run(params: str, code_sha: str, pool: Path, tasks: Path, out: Path) -> None:
    """Write ``out``: for each block of the pool its scores by row and its layers' second moments."""
    p = parse_sections(params, SECTIONS)
    import torch

    from assyllm.artifacts import verify_folder
    from assyllm.quantizer.calibrate import public_lines
    from assyllm.quantizer.sensitivity import write_sensitivity
    from assyllm.zoo.load import check_length, load_config

    torch.set_num_threads(1)
    verify_folder(Path(tasks))
    for folder in sorted((Path(pool) / "models").iterdir()):
        check_length(load_config(folder), folder.name, p.tasks.lengths)
    lines = public_lines(Path(tasks), p.tasks.names, p.sensitivity.texts)
    length = max(p.tasks.max_tokens[task] for task in p.tasks.names)
    write_sensitivity(Path(pool), Path(out), lines, length, p.sensitivity)
