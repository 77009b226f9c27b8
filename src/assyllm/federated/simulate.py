"""A whole cohort's answers at once, for the simulator: what every device would send, in a few batched products.

:func:`score_cohort` gives what :func:`assyllm.federated.client.client_step` gives client by client, and
:func:`probe_cohort` what :func:`assyllm.federated.probing.probe_step` gives (tested). Clients have unlike numbers of
rows, so theirs are laid out side by side, padded with zeros; a client's values never touch another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor

from assyllm.adapter.limit import Limit, shortened
from assyllm.adapter.linear import LinearSums
from assyllm.assembly.head import HeadSums, rows_of
from assyllm.comparator.cka import Estimator, HsicTerms, centred_padded, minibatches
from assyllm.federated.client import ballot
from assyllm.federated.data import Cohort
from assyllm.federated.messages import CandidateSums, ProbeTask, ScoreReply, ScoreTask, Vote

Chain = tuple[str, ...]
Key = tuple[str, str]  # chain id, block


@dataclass(frozen=True, slots=True)
class Parts:
    """Rows in p parts of unlike size, at most r rows each."""

    index: tuple[Tensor, ...]  # [p, r] int64 each: where a row stands in its tensor's first dimensions
    real: Tensor  # [p, r] bool, False: padding

    @classmethod
    def of(cls, where: Tensor, cuts: Sequence[slice]) -> Parts:
        """The parts that ``cuts`` makes of rows that stand at ``where`` ``[rows, k]``."""
        longest = max((cut.stop - cut.start for cut in cuts), default=0)
        first, end = (torch.tensor([getattr(cut, at) for cut in cuts], dtype=torch.int64) for at in ("start", "stop"))
        place = first[:, None] + torch.arange(longest)
        real = place < end[:, None]
        return cls(where[torch.where(real, place, 0)].unbind(-1), real)

    @property
    def count(self) -> Tensor:
        """Rows of each part ``[p]``."""
        return self.real.sum(-1)

    def of_states(self, states: Tensor) -> Tensor:
        """States ``[..., *]`` to ``[p, r, *]`` float64, zero at padding (whatever stands there: it may be NaN)."""
        found = states[self.index].double()
        return found.masked_fill_(~self.real.view(*self.real.shape, *[1] * (found.dim() - 2)), 0)


def score_cohort(task: ScoreTask, cohort: Cohort) -> list[ScoreReply]:
    """The replies of a cohort's clients to a task of scoring."""
    if not cohort.clients:
        return []
    votes: list[list[Vote]] = [[] for _ in cohort.clients]
    sums: list[dict[Key, CandidateSums]] = [{} for _ in cohort.clients]
    cut = cuts(cohort.real.sum(-1)[place].sum() for place in cohort.places.values())
    hsic, adapters = _Hsic(task, cohort, cut), _Adapters(cohort, Parts.of(cohort.real.nonzero(), cut))
    for chain, blocks in task.candidates.items():
        name, terms = "+".join(chain), hsic.of(chain, blocks)
        cka, scored = terms.cka(), terms.scored()
        voted: dict[str, list[int]] = {block: [] for block in blocks}
        for client in range(len(votes)):
            own = {b: float(cka[i, client]) if scored[i, client] else None for i, b in enumerate(blocks)}
            said = ballot(task, chain, own)
            votes[client] += said
            for vote in said[: task.kept]:
                voted[vote.block].append(client)
        for i, block in enumerate(blocks):
            limit = task.limit((name, block))
            fitted = adapters.of(chain, block, voted[block], limit)
            for client in range(len(votes)):
                one = slice(client, client + 1)
                part = HsicTerms(terms.xy[i, one], terms.xx[i, one], terms.yy[i, one], hsic.rows[client])
                sums[client][name, block] = CandidateSums(part.within(limit.choices), fitted.get(client))
    examples = [place.stop - place.start for place in cohort.places.values()]
    return [
        ScoreReply(client, task.round, task.claimed(number), tuple(said), own)
        for client, number, said, own in zip(cohort.clients, examples, votes, sums, strict=True)
    ]


def probe_cohort(task: ProbeTask, cohort: Cohort) -> list[tuple[int, dict[Key, HeadSums]]]:
    """The cohort's clients with their statistics of every candidate."""
    if not cohort.clients:
        return []
    sums: list[dict[Key, HeadSums]] = [{} for _ in cohort.clients]
    for chain, blocks in task.candidates.items():
        name = "+".join(chain)
        explained = cohort.features(chain).double() @ task.heads[name].double() if chain else None
        for block in blocks:
            found = head_sums(cohort, cohort.tried(chain, block), explained, task.limits.get((name, block)))
            for own, part in zip(sums, found, strict=True):
                own[name, block] = part
    return list(zip(cohort.clients, sums, strict=True))


def head_sums(
    cohort: Cohort, features: Tensor, explained: Tensor | None = None, limit: Limit | None = None
) -> list[HeadSums]:
    """Every client's :meth:`HeadSums.of`.

    Args:
        features: ``[n, C, F]`` of the cohort's questions; explained: ``[n, C]``; limit: a client's.
    """
    parts = Parts.of(torch.arange(len(features))[:, None], list(cohort.places.values()))
    x, y = rows_of(features, cohort.real, cohort.answer, explained, limit)
    x, y = parts.of_states(x).flatten(1, 2), parts.of_states(y).flatten(1, 2).unsqueeze(-1)
    n, questions = parts.of_states(cohort.real).sum((1, 2)), parts.count.double()
    products = x.mT @ x, (x.mT @ y).squeeze(-1), y.square().sum((1, 2)), n, questions
    return [HeadSums(*own).within(limit) for own in zip(*(product.unbind() for product in products), strict=True)]


def cuts(sizes: Iterable[Tensor | int]) -> list[slice]:
    """Slices of the given sizes, one after the other."""
    return [slice(a, b) for a, b in pairwise(accumulate((int(size) for size in sizes), initial=0))]


class _Hsic:
    """HSIC terms of candidates, all clients' minibatches in one product.

    Args:
        cut: the clients' rows, real choices, among the cohort's.
    """

    def __init__(self, task: ScoreTask, cohort: Cohort, cut: Sequence[slice]) -> None:
        self._cohort, self._estimator = cohort, cast(Estimator, task.estimator)
        own = [minibatches(c.stop - c.start, task.batch) for c in cut]
        self._owner = torch.arange(len(cut)).repeat_interleave(torch.tensor([len(found) for found in own]))
        inside = [slice(c.start + m.start, c.start + m.stop) for c, found in zip(cut, own, strict=True) for m in found]
        self._parts = Parts.of(cohort.real.nonzero(), inside)
        self.rows = [sum(m.stop - m.start for m in found) for found in own]
        self._native = cache(self._gram_of_native)

    def of(self, chain: Chain, blocks: Sequence[str]) -> HsicTerms:
        """Terms ``[blocks, clients]`` of the candidates on a chain."""
        if not blocks:
            return HsicTerms.zeros(0, len(self.rows))
        x = self._grams([self._cohort.assembled(chain, block) for block in blocks])
        y = torch.stack([self._native(block) for block in blocks])
        products = [(a * b).sum((-1, -2)) * self._parts.count for a, b in ((x, y), (x, x), (y, y))]
        total = torch.zeros(3, len(blocks), len(self.rows), dtype=torch.float64)
        return HsicTerms(*total.index_add_(-1, self._owner, torch.stack(products)).numpy())

    def _gram_of_native(self, block: str) -> Tensor:
        return self._grams([self._cohort.native(block)])[0]

    def _grams(self, features: Sequence[Tensor]) -> Tensor:
        """Centred Gram matrices ``[m, minibatches, r, r]`` of m features ``[n, C, F_i]``."""
        rows = [self._parts.of_states(states) for states in features]
        return centred_padded(torch.stack([x @ x.mT for x in rows]), self._parts.real, self._estimator)


class _Adapters:
    """Statistics of projections, all clients' in one product."""

    def __init__(self, cohort: Cohort, parts: Parts) -> None:
        self._cohort, self._parts = cohort, parts
        self._arriving, self._received = cache(self._sums_of_arriving), cache(self._sums_of_received)

    def of(self, chain: Chain, block: str, clients: Sequence[int], limit: Limit) -> dict[int, LinearSums]:
        """Client's place in the cohort -> its statistics; nothing where the candidate needs no adapter."""
        before = self._cohort.pool.before(block)
        if before in (None, chain[-1]) or not clients:
            return {}
        (x, xx, sx), (y, yy, sy, n) = self._arriving(chain, limit.x), self._received(before, limit.y)
        xy = (x[clients].mT @ y[clients]).unbind()
        sums = {c: LinearSums(xx[c], own, sx[c], sy[c], yy[c], n[c]) for c, own in zip(clients, xy, strict=True)}
        return {client: own.within(limit) for client, own in sums.items()}

    def _sums_of_arriving(self, chain: Chain, longest: float) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        x = shortened(self._parts.of_states(self._cohort.walker.vectors(chain)).flatten(1, 2), longest)
        return x, (x.mT @ x).unbind(), x.sum(1).unbind()

    def _sums_of_received(
        self, block: str, longest: float
    ) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        states = self._cohort.pooled(block)
        y = shortened(self._parts.of_states(states).flatten(1, 2), longest)
        n = self._parts.count.double() * states.shape[2]
        return y, y.square().sum((1, 2)).unbind(), y.sum(1).unbind(), n.unbind()
