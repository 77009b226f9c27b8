"""Stage ``cost``: who can run a method, as a table that the method's runs read."""

from __future__ import annotations

from pathlib import Path

from assyllm.params import parse_sections
from assyllm.results import write_table

SECTIONS = ("zoo", "fleet", "cost", "blocks", "quantize")
CODE = ("cost", "blocks/segment.py", "results.py", "artifacts.py")


def run(params: str, code_sha: str, method: str, out: Path) -> None:
    """Write ``out``: one row per zoo member and memory class for ``method``."""
    from assyllm.cost.participation import participation

    p = parse_sections(params, SECTIONS)
    write_table(out, participation(method, p.zoo, p.fleet, p.cost, p.blocks, p.quantize))
