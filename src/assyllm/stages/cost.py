"""Stage ``cost``: who can run a method and what a step of it costs, as tables that runs and figures read."""

from __future__ import annotations

from pathlib import Path

from assyllm.params import parse_sections
from assyllm.results import write_table

SECTIONS = ("zoo", "fleet", "cost", "quantize")
CODE = (
    "cost", "baselines", "blocks", "quantizer", "adapter", "assembly", "comparator", "zoo", "tasks",
    "federated/cohort.py", "evaluate.py", "results.py", "artifacts.py", "seeding.py",
)  # fmt: skip


def run(params: str, code_sha: str, method: str, out: Path, curves: Path | None = None) -> None:
    """Write ``out``: one row per zoo member and memory class for ``method``; and ``curves``: its sensitivity."""
    from assyllm.cost import participation as made

    p = parse_sections(params, SECTIONS)
    if curves is not None:
        write_table(curves, made.curves(method, p.fleet, p.cost, p.quantize), made.CURVES)
    write_table(out, made.participation(method, p.zoo, p.fleet, p.cost, p.quantize))
