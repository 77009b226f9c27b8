"""The boundary behind which devices' statistics are added: the server sees totals, never a part.

In this process it is an addition; a secure aggregation protocol (Bonawitz 2017) can take its place without
touching what stands on either side. One client's X'X in clear would give back its tokens where it holds fewer
than there are columns (shown by attack), so sums leave a device only through here.

Devices check and clip what they send (:func:`clipped`): a server that sees totals only cannot. A device that
lies about its sums is therefore not caught here; EXPERIMENTS.md says what such a device can do.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor


class Sums(Protocol):
    """Statistics that add up: :class:`LinearSums`, :class:`HeadSums`."""

    def __add__(self, other: Self) -> Self: ...

    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that travel."""


K = TypeVar("K", bound=Hashable)
S = TypeVar("S", bound=Sums)


def secure_sum(replies: Sequence[tuple[int, Mapping[K, S]]]) -> tuple[dict[K, S], list[int]]:
    """Totals by key, in the order of client numbers (float64, so that the order of arrival changes nothing).

    Args:
        replies: (client, its statistics by key).

    Returns:
        The totals, and the clients whose statistics were not finite: those are left out whole.
    """
    totals: dict[K, S] = {}
    refused = []
    for client, sums in sorted(replies, key=lambda reply: reply[0]):
        if not all(bool(torch.isfinite(part).all()) for part in (p for s in sums.values() for p in s.parts())):
            refused.append(client)
            continue
        for key, part in sums.items():
            totals[key] = totals[key] + part if key in totals else part
    return totals, refused


def clipped(features: Tensor, limit: float) -> Tensor:
    """Rows ``[..., F]`` scaled down to a norm of at most ``limit`` x sqrt(F), as every honest device does.

    Features are standardised by the server's public scales, so that a row's norm is about sqrt(F).
    """
    norm = features.norm(dim=-1, keepdim=True)
    return features * (limit * features.shape[-1] ** 0.5 / norm.clamp(min=1e-12)).clamp(max=1.0)
