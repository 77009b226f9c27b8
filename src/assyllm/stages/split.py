"""Stage ``split``: the zoo's models into a pool of blocks."""

from __future__ import annotations

from pathlib import Path

from assyllm.artifacts import output_folder, verify_folder
from assyllm.params import parse_sections

SECTIONS = ("zoo", "blocks")
CODE = ("params/pool.py",)  # beside what is imported (study.code_sha)


def run(params: str, code_sha: str, zoo: Path, out: Path) -> None:
    """Write the pool ``out`` from ``zoo``, a folder with one folder per model.

    Raises:
        ArtifactError: a member is missing or altered, or is not of the family that params name.
    """
    p = parse_sections(params, SECTIONS)
    import torch

    from assyllm.blocks.pool import write_model, write_pool

    torch.set_num_threads(1)
    with output_folder(out) as folder:
        models = {}
        for name, member in p.blocks.cut(p.zoo).items():
            source = Path(zoo) / name
            verify_folder(source)
            models[name] = write_model(folder, name, member.family, source, p.blocks)
            print(f"split {name}: {len(models[name]['blocks'])} blocks", flush=True)
        write_pool(folder, models)
