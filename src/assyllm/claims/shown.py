"""The claims as figure and README show them: those of the tables, of the sweeps, and two that are wall times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from assyllm.claims.rows import less
from assyllm.claims.table import Claims, Rows
from assyllm.results import read_table

SWEEPS = ("non_iid", "ablations")  # studies that measure what the default one does not; the first goes before


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
        table.add(
            claim,
            "swapper",
            table.paper(metric, "boolq", "block_swapper"),
            less(seconds.get(name), seconds.get(over)),
            "percent",
            "measured",
            why,
            command,
        )
    return table.rows


def all_claims(results: Path) -> list[dict[str, Any]]:
    """Every claim as figure and README show it: the study's, what only a sweep measured, the swapper's times.

    Args:
        results: the folder of a study's tables; ``claims.csv`` of :data:`SWEEPS` in folders there is taken where it is.
    """
    rows = read_table(results / "claims.csv")
    for sweep in SWEEPS:
        other = results / sweep / "claims.csv"
        if other.is_file():
            found = {(r["claim"], r["method"]): r for r in read_table(other) if r["our_value"] != ""}
            rows = [found.get((r["claim"], r["method"]), r) if r["our_value"] == "" else r for r in rows]
    return rows + swap_claims(read_table(results / "swap_ablation.csv"), read_table(results / "paper.csv"))
