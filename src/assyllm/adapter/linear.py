"""The linear adapter in closed form: ridge regression from sums that add up over clients (paper section 3.3).

The adapter maps the states that arrive to the states that the next block natively receives. Its exact
federated least-squares fit needs X'X, X'Y, the column sums and the number of rows, from forward passes only. A
row is a pooled state of an example, so it does not matter that two models cut the same text into unlike
tokens; the fitted map is then applied to every token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from assyllm.adapter import sent
from assyllm.adapter.base import Adapter
from assyllm.adapter.limit import SLACK, Limit, broken, shortened
from assyllm.adapter.reading import Join
from assyllm.artifacts import ArtifactError

ROUNDING = 1e-12  # of a sum of squares in float64, relative


@dataclass(frozen=True, slots=True)
class LinearSums:
    """Sufficient statistics of a linear map from d to e columns, float64; ``a + b`` pools their rows."""

    xx: Tensor  # [d, d] X'X
    xy: Tensor  # [d, e] X'Y
    x: Tensor  # [d] column sums of X
    y: Tensor  # [e] column sums of Y
    yy: Tensor  # [] sum of squares of Y
    n: Tensor  # [] number of rows (weighted)

    @classmethod
    def zeros(cls, d: int, e: int) -> LinearSums:
        """No rows yet."""
        shapes = ((d, d), (d, e), (d,), (e,), (), ())
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    @classmethod
    def of(cls, x: Tensor, y: Tensor, limit: Limit | None = None) -> LinearSums:
        """The sums of rows ``x`` ``[n, d]`` and ``y`` ``[n, e]`` of the same n examples, kept within a limit.

        Raises:
            ArtifactError: they are no matrices of equally many rows.
        """
        if x.dim() != 2 or y.dim() != 2 or x.shape[0] != y.shape[0]:
            raise ArtifactError(f"adapter sums of {list(x.shape)} and {list(y.shape)}: [n, d] and [n, e] are expected")
        x, y = x.detach().double(), y.detach().double()
        if limit is not None:
            x, y = shortened(x, limit.x), shortened(y, limit.y)
        rows = torch.tensor(float(x.shape[0]), dtype=torch.float64)
        return cls(x.T @ x, x.T @ y, x.sum(0), y.sum(0), y.pow(2).sum(), rows).within(limit)

    def __add__(self, other: LinearSums) -> LinearSums:
        if self.xy.shape != other.xy.shape:
            raise ArtifactError(f"sums of widths {list(self.xy.shape)} and {list(other.xy.shape)} do not add up")
        return LinearSums(*(a + b for a, b in zip(self.parts(), other.parts(), strict=True)))

    def scaled(self, factor: float) -> LinearSums:
        """The sums as if every row counted ``factor`` times."""
        return LinearSums(*(part * factor for part in self.parts()))

    def within(self, limit: Limit | None) -> LinearSums:
        """One device's sums, each row counting less where they are more than the limit allows."""
        share = 1.0 if limit is None else limit.share(float(self.n))
        return self if share == 1 else self.scaled(share)

    def parts(self) -> tuple[Tensor, ...]:
        """The six tensors, in the order of the fields."""
        return self.xx, self.xy, self.x, self.y, self.yy, self.n

    def fits(self, d: int, e: int) -> bool:
        """Whether the parts are tensors of the shapes that sums from width ``d`` to ``e`` have."""
        shapes = [(d, d), (d, e), (d,), (e,), (), ()]
        return all(
            isinstance(part, Tensor) and part.is_floating_point() and tuple(part.shape) == shape
            for part, shape in zip(self.parts(), shapes, strict=True)
        )

    def breaks(self, limit: Limit) -> str:
        """Which bound a device's sums break, "" if none (column sums: |x|^2 <= n trace(X'X), and y alike)."""
        n = float(self.n)
        why = broken(limit, self.xx, self.xy, self.yy, n, n)
        columns = ((self.x, self.xx.diagonal().sum()), (self.y, self.yy))
        if not why and any(float(c @ c) > n * float(square) * SLACK for c, square in columns):
            return "sums that no rows have"
        return why

    @property
    def bytes(self) -> int:
        """Bytes of one upload."""
        return sent.linear_sums(*self.xy.shape)

    @property
    def arriving_bytes(self) -> int:
        """Of these, those of X'X, X's column sums and n: the same whatever the rows are mapped to."""
        return sent.arriving_sums(self.xy.shape[0])

    def fit(self, ridge: float) -> LinearAdapter:
        """The ridge fit, the intercept not penalised.

        Args:
            ridge: penalty relative to the mean variance of a column of X.

        Raises:
            ArtifactError: no rows, sums that are not finite, a ridge below 0, or of 0 with fewer independent rows than
                columns.
        """
        if not 0 <= ridge < math.inf:
            raise ArtifactError(f"ridge: {ridge} is not a number from 0")
        if float(self.n) < 1:
            raise ArtifactError("an adapter cannot be fitted to no rows")
        if not all(bool(torch.isfinite(part).all()) for part in self.parts()):
            raise ArtifactError("adapter sums are not finite")
        mean_x, mean_y = self.x / self.n, self.y / self.n
        cxx = self.xx / self.n - torch.outer(mean_x, mean_x)
        cxy = self.xy / self.n - torch.outer(mean_x, mean_y)
        size = cxx.shape[0]
        penalty = ridge * cxx.diagonal().mean().clamp(min=1e-12)
        try:
            weight = torch.linalg.solve(cxx + penalty * torch.eye(size, dtype=torch.float64), cxy)
        except torch.linalg.LinAlgError:
            raise ArtifactError(f"no adapter at ridge {ridge}: fewer independent rows than columns") from None
        return LinearAdapter(weight.float(), (mean_y - mean_x @ weight).float())

    def unexplained(self, adapter: LinearAdapter) -> float:
        """The share of Y's variance that the adapter leaves unexplained on these rows (1 - R^2).

        Of a Y that does not vary 0 where the adapter gives it, as far as rounding shows, else infinite.
        """
        w, b = adapter.weight.double(), adapter.bias.double()
        cross = (w * self.xy).sum() + b @ self.y
        square = (w * (self.xx @ w)).sum() + 2 * b @ (w.T @ self.x) + self.n * b @ b
        total, left = self.yy - self.y @ self.y / self.n, self.yy - 2 * cross + square
        if float(total) <= ROUNDING * float(self.yy):
            return 0.0 if float(left) <= ROUNDING * float(self.yy) else math.inf
        return float(left / total)


class LinearAdapter(Adapter):
    """``states [..., d] -> states @ weight + bias [..., e]``, frozen."""

    kind: ClassVar[str] = "linear"
    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        if weight.dim() != 2 or bias.shape != weight.shape[1:]:
            raise ValueError(f"weight {list(weight.shape)} with bias {list(bias.shape)}")
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def config(self) -> dict[str, Any]:
        """The widths that it joins."""
        return {"from": self.weight.shape[0], "to": self.weight.shape[1]}

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors["weight"], tensors["bias"])

    def forward(self, states: Tensor, join: Join | None = None) -> Tensor:
        return states @ self.weight.to(states.dtype) + self.bias.to(states.dtype)
