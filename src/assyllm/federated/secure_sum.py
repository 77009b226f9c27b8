"""The boundary behind which devices' statistics are added: the server sees totals, never a part.

In this process it is an addition; a secure aggregation protocol (Bonawitz 2017) can take its place without
touching what stands on either side. One client's X'X in clear tells much about its examples where it holds fewer
than there are columns, so sums leave a device only through here.

Sums that are not finite are left out. A device that lies about its sums is not caught: a server that sees totals
only cannot tell, and nothing bounds the norm of what a device adds yet.
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
        if not all(finite(part) for s in sums.values() for part in s.parts()):
            refused.append(client)
            continue
        for key, part in sums.items():
            totals[key] = totals[key] + part if key in totals else part
    return totals, refused


def finite(part: Tensor) -> bool:
    """Whether all of a tensor's numbers are finite: their sum is then too, and that is one pass over them."""
    return bool(torch.isfinite(part.sum()))
