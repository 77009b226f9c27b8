"""Who gets how many bits: a greedy knapsack over rows to a byte budget, the paper's rule, and whole layers.

A row's scored error at a width is its importance times its squared rounding error. Every row starts at the narrowest
width; upgrades are bought in the order of error saved per byte until the next one does not fit. Each row's upgrades
are taken along the lower convex hull of (bytes, error), so a row's own upgrades come in order and allocations
are nested: a larger budget keeps every upgrade of a smaller one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assyllm.artifacts import ArtifactError
from assyllm.quantizer.planes import nearest, restore
from assyllm.quantizer.sizes import row_bytes

FLOOR = 0.01  # least importance of a row, relative to its matrix's mean: calibration texts miss some rows


@dataclass(frozen=True)
class Matrix:
    """What allocation needs to know of one matrix."""

    importance: Tensor  # [rows]
    errors: Tensor  # [widths, rows] squared rounding error at each width
    columns: int


def rounding_errors(weight: Tensor, widths: Sequence[int], group_size: int) -> Tensor:
    """Squared error ``[widths, rows]`` of plain rounding at each width."""
    rows = []
    for width in widths:
        every = torch.full((weight.shape[0],), width, dtype=torch.uint8, device=weight.device)
        back = restore(*nearest(weight, every, group_size), weight, every, group_size)
        rows.append((back - weight).pow(2).sum(1))
    return torch.stack(rows).cpu()


def knapsack(
    matrices: Mapping[str, Matrix], widths: Sequence[int], group_size: int, budget: int, whole: bool = False
) -> dict[str, Tensor]:
    """Widths ``[rows]`` uint8 of every matrix within ``budget`` bytes.

    Args:
        widths: ascending; every row gets at least the first.
        budget: bytes of all matrices together, scales and widths included.
        whole: one width a matrix (the layer-wise comparison).

    Raises:
        ArtifactError: the budget is below the bytes of the narrowest width.
    """
    errors, cost, rows = [], [], []
    for matrix in matrices.values():
        importance = matrix.importance.double()
        importance = importance.clamp(min=FLOOR * float(importance.mean()))
        error = importance * matrix.errors.double()
        bytes_ = torch.tensor([row_bytes(b, matrix.columns, group_size) for b in widths], dtype=torch.int64)
        rows.append(error.shape[1])
        if whole:
            errors.append(error.sum(1, keepdim=True))
            cost.append(bytes_[:, None] * error.shape[1])
        else:
            errors.append(error)
            cost.append(bytes_[:, None].expand(-1, error.shape[1]))
    error, spent = torch.cat(errors, dim=1), torch.cat(cost, dim=1)
    floor = int(spent[0].sum())
    if floor > budget:
        raise ArtifactError(f"{budget} bytes are below the {floor} of every weight at {widths[0]} bits")
    chosen = _buy(error, spent, budget - floor)
    picked = torch.tensor(widths, dtype=torch.uint8)[chosen]
    sizes = [1] * len(rows) if whole else rows
    parts = torch.split(picked, sizes)
    return {
        name: part.expand(count).clone() if whole else part
        for name, part, count in zip(matrices, parts, rows, strict=True)
    }


def _buy(error: Tensor, cost: Tensor, slack: int) -> Tensor:
    """Index of the width ``[N]`` of each unit; ``error`` and ``cost`` are ``[widths, N]``."""
    number, units = error.shape
    now = torch.zeros(units, dtype=torch.int64)
    last = torch.full((units,), torch.inf, dtype=torch.float64)
    every = torch.arange(units)
    upgrades: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for _ in range(number - 1):
        gain = error[now, every] - error
        price = (cost - cost[now, every]).double()
        ratio = torch.where((torch.arange(number)[:, None] > now) & (gain > 0), gain / price.clamp(min=1), -1.0)
        best, to = ratio.max(0)
        on = best > 0
        if not on.any():
            break
        best = torch.minimum(best, last)
        upgrades.append((best[on], price[to, every][on].long(), every[on], to[on]))
        now, last = torch.where(on, to, now), best
    if not upgrades:
        return torch.zeros(units, dtype=torch.int64)
    ratio, price, unit, to = (torch.cat(parts) for parts in zip(*upgrades, strict=True))
    order = torch.argsort(ratio, descending=True, stable=True)
    bought = order[: int(torch.searchsorted(price[order].cumsum(0), slack, right=True))]
    return torch.zeros(units, dtype=torch.int64).scatter_reduce(0, unit[bought], to[bought], "amax")


def two_thresholds(
    scores: Mapping[str, Mapping[str, Tensor]],
    columns: Mapping[str, int],
    group_size: int,
    budget: int,
    sparsity_quantile: float,
    output_quantile: float,
) -> dict[str, Tensor]:
    """The paper's rule: rows below either threshold are INT4; the rest, ranked by correlation, INT8 while it fits.

    The paper gives neither thresholds nor granularity. Ours: output rows, and thresholds as quantiles of the pool's
    rows. Correlations of all layers are ranked together; the last layers' are largest by themselves.

    Args:
        scores: "sparsity", "masking" and "correlation" -> matrix -> ``[rows]``.

    Raises:
        ArtifactError: the budget is below every weight at INT4.
    """
    names = list(columns)
    rows = [len(scores["correlation"][name]) for name in names]
    flat = {score: torch.cat([scores[score][name] for name in names]).double() for score in scores}
    important = flat["sparsity"] >= flat["sparsity"].quantile(sparsity_quantile)
    important &= flat["masking"] >= flat["masking"].quantile(output_quantile)
    each = {b: torch.tensor([row_bytes(b, columns[name], group_size) for name in names]) for b in (4, 8)}
    four, eight = (each[b].repeat_interleave(torch.tensor(rows)) for b in (4, 8))
    slack = budget - int(four.sum())
    if slack < 0:
        raise ArtifactError(f"{budget} bytes are below the {int(four.sum())} of every weight at 4 bits")
    order = torch.argsort(torch.where(important, flat["correlation"], -1.0), descending=True, stable=True)
    order = order[: int(important.sum())]
    fits = order[: int(torch.searchsorted((eight - four)[order].cumsum(0), slack, right=True))]
    widths = torch.full((sum(rows),), 4, dtype=torch.uint8)
    widths[fits] = 8
    return dict(zip(names, torch.split(widths, rows), strict=True))
