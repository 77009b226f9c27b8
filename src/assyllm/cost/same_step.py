"""Methods whose device step is another's: their cost table is that one's, with their own participation. No torch."""

from __future__ import annotations

from typing import Any

from assyllm.params import ASSEMBLING, Fleet

# other clients take part, or other blocks are walked
SAME_STEP = {
    "ft_practical": "ft_oracle",
    "lora_all": "lora",
    **{method: "assyllm" for method in ASSEMBLING if method not in ("assyllm", "assyllm_paper")},
}
# every class takes part, whatever the peak: the bounds without a memory limit
UNBOUNDED = ("ft_oracle", "lora_all")


def participates(method: str, peak_gb: float, memory_gb: float, fleet: Fleet) -> int:
    """1 if a class of devices runs ``method``: its peak and the system's reserve fit (GB), or it has no limit."""
    return int(method in UNBOUNDED or peak_gb + fleet.reserve_gb <= memory_gb)


def taken_over(method: str, rows: list[dict[str, str]], fleet: Fleet) -> list[dict[str, Any]]:
    """The rows of ``SAME_STEP[method]``'s cost table as the table of ``method``."""
    return [
        row
        | {
            "method": method,
            "participates": participates(method, float(row["peak_gb"]), float(row["memory_gb"]), fleet),
        }
        for row in rows
    ]
