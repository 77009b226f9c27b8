"""Stage ``collect``: raw runs become the result tables."""

from __future__ import annotations

from pathlib import Path

from assyllm.params import parse_sections

SECTIONS = ("evaluate", "baselines", "assembling", "partition", "zoo", "blocks", "cost")
# beside what is imported (study.code_sha)
CODE = (
    "paper_values.csv",
    "cost/devices.csv",
    "params/names.py",
    "params/assembling.py",
    "params/baselines.py",
    "params/pool.py",
)


def run(
    params: str,
    code_sha: str,
    size: str,
    runs: list[Path],
    cost: list[Path],
    curves: list[Path],
    precision: list[Path],
    out: Path,
) -> None:
    """Write the tables of study ``size`` into ``out``."""
    from assyllm.collect.tables import collect

    collect(size, runs, cost, parse_sections(params, SECTIONS), out, curves, precision)
