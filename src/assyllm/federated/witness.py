"""Whether the server believes a total: its own labelled questions are asked (in the manner of FLTrust, Cao 2021).

The server sees totals over a cohort only, so it cannot tell who in one lied; but it holds the development split. Its
questions count as one more cohort's then, and judge the others: a total of a head's statistics is believed where a head
fitted to it, to what was believed before and to one half of those questions is no worse on the other half than one
fitted without it, and than one fitted to the half alone. What is not believed is left out whole, the honest clients'
part with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from assyllm.artifacts import ArtifactError
from assyllm.assembly.head import Head, HeadSums

ERRORS = 1.0  # standard errors by which the questions answered right may become fewer


class Witness:
    """The server's questions as one head sees them.

    Args:
        grid: ridges, of which the best across the halves is taken each time.
        features: ``[N, C, F]``; choice_mask: ``[N, C]`` bool; answer: ``[N]``.
    """

    def __init__(self, grid: Sequence[float], features: Tensor, choice_mask: Tensor, answer: Tensor) -> None:
        self._grid = grid
        self._features, self._mask, self._answer = features, choice_mask, answer
        even = torch.arange(len(answer)) % 2 == 0
        self._halves = (even, ~even)
        self._sums = [HeadSums.of(features[half], choice_mask[half], answer[half]) for half in self._halves]
        self._alone, _ = self._right(None)

    def believes(self, total: HeadSums, before: HeadSums | None) -> bool:
        """Whether the questions bear out a total, given what was believed before (None: nothing)."""
        try:
            after, _ = self._right(total if before is None else before + total)
        except ArtifactError:  # products that no rows have
            return False
        so_far = self._alone if before is None else self._right(before)[0]
        return all(_no_worse(after, other) for other in (so_far, self._alone))

    def pooled(self, believed: HeadSums | None) -> HeadSums:
        """The server's questions beside what is believed."""
        own = self._sums[0] + self._sums[1]
        return own if believed is None else believed + own

    def fit(self, believed: HeadSums | None) -> tuple[Head, float, float]:
        """The head of both, its ridge, and how often the server's questions are answered right across the halves."""
        right, ridge = self._right(believed)
        return self.pooled(believed).fit(ridge), ridge, float(right.double().mean())

    def _right(self, sums: HeadSums | None) -> tuple[Tensor, float]:
        """Which questions ``[N]`` heads answer that were fitted to ``sums`` and the other half, and the best ridge."""
        found = torch.zeros(len(self._grid), len(self._answer), dtype=torch.bool)
        for half, other in zip(self._halves, reversed(self._sums), strict=True):
            heads = (other if sums is None else sums + other).fits(self._grid)
            for row, head in zip(found, heads, strict=True):
                row[half] = head(self._features[half], self._mask[half]).argmax(-1) == self._answer[half]
        best = max(range(len(self._grid)), key=lambda i: (int(found[i].sum()), self._grid[i]))
        return found[best], self._grid[best]


def _no_worse(after: Tensor, before: Tensor) -> bool:
    """Whether fewer right answers may be chance (McNemar's test of paired answers)."""
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    return lost - won <= ERRORS * math.sqrt(lost + won)
