"""A bound on what one device may add to a sum: how long its rows are, how many it has.

An honest device shortens its own rows (:func:`shortened`) and counts each less where it has too many; :func:`broken`
is what a protocol that sums in secret can prove of a device's part without showing it: norms and counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

SLACK = 1 + 1e-9  # for rounding in float64


@dataclass(frozen=True, slots=True)
class Limit:
    """Bounds on one device's part of a sum; infinite where there is none."""

    x: float = math.inf  # norm of a row of features
    y: float = math.inf  # norm of a target: of a question's (head), of a row's (adapter)
    rows: float = math.inf
    examples: float = math.inf
    choices: float = math.inf  # of all examples: the rows of HSIC terms

    def share(self, rows: float, examples: float = 0.0) -> float:
        """What each row of a device with that many counts: 1, or less where they are more than allowed."""
        return min(1.0, self.rows / max(rows, 1.0), self.examples / max(examples, 1.0))


def shortened(rows: Tensor, longest: float) -> Tensor:
    """Rows ``[..., d]``, those of a norm beyond ``longest`` cut to it; the others keep every bit."""
    if math.isinf(longest):
        return rows
    return rows * (longest / rows.norm(dim=-1, keepdim=True)).clamp(max=1)


def broken(limit: Limit, xx: Tensor, xy: Tensor, yy: Tensor, rows: float, targets: float) -> str:
    """Which bound sums of ``rows`` rows and ``targets`` targets break, in words; "" if none.

    Norms: trace(X'X) <= rows * x^2, sum(Y^2) <= targets * y^2, |X'Y|^2 <= trace(X'X) sum(Y^2).
    """
    x, y = float(xx.diagonal().sum()), float(yy)
    if not 0 <= rows <= limit.rows * SLACK:
        return "sums of more rows than allowed"
    if x < 0 or x > rows * limit.x**2 * SLACK:
        return "sums of longer rows than allowed"
    if y < 0 or y > targets * limit.y**2 * SLACK:
        return "sums of longer targets than allowed"
    if float(xy.square().sum()) > x * y * SLACK:
        return "sums that no rows have"
    return ""
