"""The claims as figure and README show them: those of the tables, of the sweeps, and two that are wall times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assyllm.claims.rows import less
from assyllm.claims.table import Claims, Rows
from assyllm.results import read_table

# studies that measure what the default one does not; the first goes before
SWEEPS = ("choosing", "non_iid", "ablations")
SEEDS = "full"  # the study of more seeds: where it says something else than the default one, it is what is shown


def swap_claims(times: Rows, paper: Rows) -> list[dict[str, Any]]:
    """The two savings of the swapper's pipelines, from its wall times (``swap_ablation.csv``), and what both save."""
    last: dict[str, tuple[int, float]] = {}
    for row in times:
        if row["what"] == "time":
            took = (int(float(row["passes"])), float(row["seconds"]))
            last[row["pipeline"]] = max(last.get(row["pipeline"], (0, 0.0)), took)
    seconds = {name: value for name, (_, value) in last.items()}
    table = Claims(paper, "random weights on a throttled storage, one run", "")
    command = "snakemake --cores 2 results"
    for claim, name, over, metric, why in (
        ("Local time saved by pre-loading", "preload", "default", "time_saved_by_preload",
         "two units fit the budget here, so without pre-swapping a read waits until one is let go; -2 to 5 by run"),
        ("Local time saved by pre-swapping on top", "preload_preswap", "preload", "time_saved_by_preswap_on_top",
         "computing and reading take equally long here; overlap alone saves at most 50 % of all"),
    ):  # fmt: skip
        ours = less(seconds.get(name), seconds.get(over))
        table.add(
            claim, "swapper", table.paper(metric, "boolq", "block_swapper"), ours, why, command, source="measured"
        )
    return table.rows


def _told(study: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The claims that a study says something on, by claim and method."""
    if not (study / "claims.csv").is_file():
        return {}
    return {(row["claim"], row["method"]): row for row in read_table(study / "claims.csv") if row["our_value"] != ""}


def _first(row: dict[str, str], told: Mapping[tuple[str, str], dict[str, str]]) -> dict[str, str]:
    """The row that another study has for the same claim, where its value is another."""
    other = told.get((row["claim"], row["method"]), row)
    return row if other["our_value"] == row["our_value"] else other


def all_claims(results: Path) -> list[dict[str, Any]]:
    """Every claim as figure and README show it: of most seeds, what only a sweep measured, the swapper's times.

    Args:
        results: the folder of a study's tables; ``claims.csv`` of :data:`SEEDS` and :data:`SWEEPS` in folders there is
            taken where it is.
    """
    more = _told(results / SEEDS)
    rows = [_first(row, more) for row in read_table(results / "claims.csv")]
    for sweep in SWEEPS:
        told = _told(results / sweep)
        rows = [_first(row, told) if row["our_value"] == "" else row for row in rows]
    return rows + swap_claims(read_table(results / "swap_ablation.csv"), read_table(results / "paper.csv"))
