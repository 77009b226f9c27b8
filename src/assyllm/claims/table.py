"""The claims table as it grows: verdicts, columns, the paper's value by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

METHODS = ("assyllm_paper", "assyllm")  # judged in this order
TOLERANCE = 0.25  # "reproduced": at least this close to the paper's value, relative, or beyond it
SAME = 0.05  # relative, for values that are what they are (sizes)
COLUMNS = (
    "claim", "method", "paper_value", "our_value", "low", "high", "unit", "source", "scale", "world", "verdict", "why",
    "command",
)  # fmt: skip
Kind = Literal["effect", "factor", "at most", "near", "equal"]
Interval = tuple[float, float]
Rows = Iterable[Mapping[str, Any]]


def verdict(paper: float, ours: float | None, interval: Interval | None = None, kind: Kind = "effect") -> str:
    """How far a claim stands.

    ``effect``: ``reproduced`` if ours reaches the paper's value within :data:`TOLERANCE`, or exceeds it; ``reproduced
    in direction`` if it has the same sign; either way its interval, if there is one, excludes zero. ``factor``: the
    same, with the sign of the logarithm (below 1 is a slow-down). ``at most``: a loss or price, ``reproduced`` if it
    and its interval's upper end are no larger than the paper's (within the same tolerance), ``in direction`` if only
    itself is. ``near``: within :data:`TOLERANCE` on either side (counts and shares); ``equal``: within :data:`SAME`.
    Else ``not reproduced``.
    """
    if ours is None:
        return "not yet measured"
    if kind in ("equal", "near"):
        room = SAME if kind == "equal" else TOLERANCE
        return "reproduced" if abs(ours - paper) <= room * abs(paper) else "not reproduced"
    if kind == "at most":
        bound = (1 + TOLERANCE) * paper
        if ours > bound:
            return "not reproduced"
        return "reproduced" if interval is None or max(interval) <= bound else "reproduced in direction"
    none = 1 if kind == "factor" else 0  # where there is no effect
    same_side = np.sign(paper - none) == np.sign(ours - none)
    if interval is not None:
        same_side = same_side and (min(interval) - none) * (max(interval) - none) > 0
    if not same_side:
        return "not reproduced"
    return "reproduced" if abs(ours) >= (1 - TOLERANCE) * abs(paper) else "reproduced in direction"


def braced(names: Sequence[str]) -> str:
    """Names as a shell takes them: ``{a,b}``, or the only one."""
    return names[0] if len(names) == 1 else "{" + ",".join(names) + "}"


def number(value: str | float) -> str:
    """A claim's value as figure and README write it: three digits, whole numbers from 1,000 on; "" where none is."""
    if value == "":
        return ""
    return f"{float(value):,.0f}" if abs(float(value)) >= 1000 else f"{float(value):.3g}"


class Claims:
    """The table as it grows; ``paper`` finds a published value by its metric, dataset and method.

    Args:
        size: the study whose numbers these are; ``repetitions``: its runs' last names, as ``zoo0_seed1``.
    """

    def __init__(
        self, paper: Rows, scale: str, world: str, size: str = "default", repetitions: Sequence[str] = ()
    ) -> None:
        self._paper = {(p["metric"], p["dataset"], p["method"]): float(p["value"]) for p in paper}
        self._scale, self._world = scale, world
        self.size, self._repetitions = size, repetitions
        self.rows: list[dict[str, Any]] = []

    def paper(self, metric: str, dataset: str = "", method: str = "assyllm") -> float:
        """A published value."""
        return self._paper[metric, dataset, method]

    def command(self, *methods: str) -> str:
        """The command that makes what a claim rests on: of the default study's, the runs of some methods alone."""
        if self.size != "default" or not (methods and self._repetitions):
            return f"snakemake --cores 2 {'results' if self.size == 'default' else self.size}"
        parts = [name.rpartition("seed") for name in self._repetitions]
        every = braced(self._repetitions)
        if len({zoo for zoo, _, _ in parts}) == 1:
            every = f"{parts[0][0]}seed{braced([seed for _, _, seed in parts])}"
        return f"snakemake --cores 2 data/runs/base/{braced(list(dict.fromkeys(methods)))}/{every}"

    def add(
        self, claim: str, method: str, paper: float, ours: float | None, why: str, command: str, *,
        unit: str = "percent", source: str = "modelled", interval: Interval | None = None, kind: Kind = "effect",
    ) -> None:  # fmt: skip
        """One more row; ``ours`` None where this study did not measure it."""
        measured = source == "measured"
        ours = None if ours is None else ours + 0.0  # no -0
        low, high = (end + 0.0 for end in interval) if interval is not None and ours is not None else ("", "")
        self.rows.append(
            {
                "claim": claim, "method": method, "paper_value": round(paper, 4),
                "our_value": "" if ours is None else ours,
                "low": low, "high": high, "unit": unit, "source": source if ours is not None else "",
                "scale": self._scale if measured else "true shapes", "world": self._world if measured else "",
                "verdict": verdict(paper, ours, interval, kind),
                "why": why if ours is not None else "not run in this study",
                "command": command,
            }
        )  # fmt: skip
