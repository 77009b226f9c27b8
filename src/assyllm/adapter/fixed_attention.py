"""An adapter that reads the text again: attention with fixed patterns in place of learned queries and keys.

The paper's cross-attention lets the arriving stream look at the next block's own context (section 3.3). Here
the stream moves to the next model's own tokens, and four patterns look at that model's embedding of the text:
the token itself, the one before, the one after (none before a causal block) and the mean of all that the token
may see. Only the output projection is left to fit, and that is ridge regression to the states which the block
natively receives: on the server's public text, forward passes only, once for every block whatever stands
before it. What the chain adds is a low-rank correction, fitted to what the re-reading leaves unexplained, from
arriving states that stand at the same characters.

So a join costs ``rank (a + e)`` numbers to send; the block's own part ships with the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from assyllm.adapter.base import Adapter
from assyllm.adapter.linear import LinearSums
from assyllm.adapter.reading import Join


def patterns(join: Join) -> Tensor:
    """What the patterns see ``[r, T, P * d]``: own token, the one before, the mean of those seen, the one after."""
    real = join.mask.unsqueeze(-1).to(join.embedded.dtype)
    own = join.embedded * real
    none = torch.zeros_like(own[:, :1])
    before = torch.cat([none, own[:, :-1]], 1)
    if join.causal:
        mean = own.cumsum(1) / real.cumsum(1).clamp(min=1)
        return torch.cat([own, before, mean], -1)
    mean = (own.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)).expand_as(own)
    after = torch.cat([own[:, 1:], none], 1)
    return torch.cat([own, before, mean, after], -1)


@dataclass(frozen=True, slots=True)
class Rereading:
    """The part of the adapter that belongs to a block: what its model's embedding alone explains."""

    weight: Tensor  # [P * d, e]
    bias: Tensor  # [e]

    def __call__(self, join: Join) -> Tensor:
        """Estimates ``[r, T, e]`` of the states that the block natively receives."""
        return patterns(join) @ self.weight + self.bias


class FixedAttentionAdapter(Adapter):
    """``patterns(text) @ reread + arriving @ down @ up + bias``; the stream moves to the block's own tokens."""

    kind: ClassVar[str] = "fixed_attention"
    reads: ClassVar[bool] = True
    moves: ClassVar[bool] = True
    reread: Tensor
    down: Tensor
    up: Tensor
    bias: Tensor

    def __init__(self, reread: Tensor, down: Tensor, up: Tensor, bias: Tensor) -> None:
        super().__init__()
        if down.shape[1] != up.shape[0] or not reread.shape[1] == up.shape[1] == bias.shape[0]:
            raise ValueError(f"reread {list(reread.shape)}, down {list(down.shape)}, up {list(up.shape)}")
        for name, tensor in (("reread", reread), ("down", down), ("up", up), ("bias", bias)):
            self.register_buffer(name, tensor)

    def config(self) -> dict[str, Any]:
        """The widths that it joins, of what it reads again, and the rank of what the chain adds."""
        return {
            "from": self.down.shape[0],
            "reads": self.reread.shape[0],
            "rank": self.down.shape[1],
            "to": self.up.shape[1],
        }

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        return cls(*(tensors[name] for name in ("reread", "down", "up", "bias")))

    @property
    def sent_bytes(self) -> int:
        """Bytes that a task carries for it: the re-reading ships with the pool."""
        return self.down.nbytes + self.up.nbytes + self.bias.nbytes

    def forward(self, states: Tensor, join: Join) -> Tensor:
        return patterns(join) @ self.reread + join.arriving(states) @ self.down @ self.up + self.bias


def fit_rereading(sums: LinearSums, ridge: float) -> Rereading:
    """The block's part from sums of :func:`patterns` against native states."""
    fitted = sums.fit(ridge)
    return Rereading(fitted.weight, fitted.bias)


def fit(block: Rereading, sums: LinearSums, ridge: float, rank: int) -> FixedAttentionAdapter:
    """The adapter of one join.

    Args:
        sums: of aligned arriving states ``[n, a]`` against what the re-reading leaves unexplained ``[n, e]``.
        rank: of the correction; reduced-rank regression on the ridge fit's predictions.
    """
    fitted = sums.fit(ridge)
    weight = fitted.weight.double()
    mean = sums.x / sums.n
    covariance = sums.xx / sums.n - torch.outer(mean, mean)
    _, directions = torch.linalg.eigh(weight.T @ covariance @ weight)
    kept = directions.flip(-1)[:, : min(rank, *weight.shape)]  # [e, rank], largest first
    up = kept.T.float()
    down = (weight @ kept).float()
    bias = block.bias + (sums.y / sums.n - mean @ weight @ kept @ kept.T).float()
    return FixedAttentionAdapter(block.weight, down, up, bias)
