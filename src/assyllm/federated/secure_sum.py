"""The boundary behind which devices' statistics are added: the server sees totals, never a part.

In this process it is an addition; a secure aggregation protocol (Bonawitz 2017) can take its place without
touching what stands on either side. One client's X'X in clear tells much about its examples where it holds fewer
than there are columns, so sums leave a device only through here.

Sums that are not finite or break their limit are left out: norms and counts are what such a protocol can prove of a
part without showing it (Lycklama 2023; Roy Chowdhury 2022). A lie within the limits is not caught: a server that sees
totals only cannot tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from assyllm.adapter.limit import Limit


class Sums(Protocol):
    """Statistics that add up: :class:`HeadSums`, :class:`CandidateSums`."""

    def __add__(self, other: Self) -> Self: ...

    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that travel."""

    def breaks(self, limit: Limit) -> str:
        """Which bound they break, in words; "" if none."""


K = TypeVar("K", bound=Hashable)
S = TypeVar("S", bound=Sums)


def secure_sum(
    replies: Sequence[tuple[int, Mapping[K, S]]], limits: Mapping[K, Limit] | None = None, least: int = 1
) -> tuple[dict[K, S], dict[int, str]]:
    """Totals by key, in the order of client numbers (float64, so that the order of arrival changes nothing).

    Args:
        replies: (client, its statistics by key).
        limits: bounds on one client's statistics by key; a key without one has none but what any rows keep.
        least: a total over fewer clients is not formed (those left out do not count).

    Returns:
        The totals, and by client why its statistics were left out, whole.
    """
    totals: dict[K, S] = {}
    count: Counter[K] = Counter()
    refused: dict[int, str] = {}
    heard = Counter(client for client, _ in replies)
    for client, sums in sorted(replies, key=lambda reply: reply[0]):
        reasons = [_why(part, (limits or {}).get(key, Limit())) for key, part in sums.items()]
        reasons += ["more than one part"] if heard[client] > 1 else []
        if any(reasons):
            refused[client] = next(filter(None, reasons))
            continue
        for key, part in sums.items():
            totals[key] = totals[key] + part if key in totals else part
            count[key] += 1
    return {key: total for key, total in totals.items() if count[key] >= least}, refused


def _why(part: Sums, limit: Limit) -> str:
    """Why a client's part is left out, "" if it is not. A tensor's numbers are finite where their sum is."""
    if not all(bool(torch.isfinite(tensor.sum())) for tensor in part.parts()):
        return "sums that are not finite"
    return part.breaks(limit)
