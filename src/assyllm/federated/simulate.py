"""A whole cohort's answers at once, for the simulator: what every device would send, in a few batched products.

:func:`score_cohort` gives what :func:`assyllm.federated.client.client_step` gives client by client, and
:func:`probe_cohort` what :func:`assyllm.federated.probing.probe_step` gives (tested). Clients have unlike numbers of
rows, so theirs are laid out side by side, padded with zeros; a client's values never touch another's.

Of a head's sums only the total is wanted, so that X'X is one product over all rows (:class:`CohortHeadSums`); what a
device is judged by, its norms and counts, stays its own.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from assyllm.adapter import sent
from assyllm.adapter.limit import SLACK, Limit, shortened
from assyllm.adapter.linear import LinearSums
from assyllm.assembly.head import HeadSums, rows_of
from assyllm.comparator.cka import Estimator, HsicTerms, centred_padded, minibatches
from assyllm.federated.client import ballot
from assyllm.federated.data import Cohort
from assyllm.federated.liars import Liars
from assyllm.federated.messages import CandidateSums, ProbeTask, ScoreReply, ScoreTask, Vote
from assyllm.federated.secure_sum import secure_sum

K = TypeVar("K", bound=Hashable)
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
        for client in range(len(votes)):
            own = {b: float(cka[i, client]) if scored[i, client] else None for i, b in enumerate(blocks)}
            votes[client] += ballot(task, chain, own)
        for i, block in enumerate(blocks):
            limit = task.limit((name, block))
            none: Sequence[LinearSums | None] = [None] * len(votes)
            fitted = adapters.of(chain, block, limit) if (name, block) in task.adapted else none
            for client in range(len(votes)):
                one = slice(client, client + 1)
                part = HsicTerms(terms.xy[i, one], terms.xx[i, one], terms.yy[i, one], hsic.rows[client])
                sums[client][name, block] = CandidateSums(part.within(limit.choices), fitted[client])
    examples = [place.stop - place.start for place in cohort.places.values()]
    return [
        ScoreReply(client, task.round, task.claimed(number), tuple(said), own)
        for client, number, said, own in zip(cohort.clients, examples, votes, sums, strict=True)
    ]


def probe_cohort(task: ProbeTask, cohort: Cohort) -> dict[Key, CohortHeadSums]:
    """The cohort's statistics of every candidate."""
    sums: dict[Key, CohortHeadSums] = {}
    for chain, blocks in task.candidates.items() if cohort.clients else ():
        name = "+".join(chain)
        explained = cohort.features(chain).double() @ task.heads[name].double() if chain else None
        for block in blocks:
            limit = task.limits.get((name, block))
            sums[name, block] = CohortHeadSums.of(cohort, cohort.tried(chain, block), explained, limit)
    return sums


@dataclass(frozen=True, slots=True)
class CohortHeadSums:
    """The rows whose products every client's :class:`HeadSums` are, a client's rows side by side."""

    x: Tensor  # [n, C, F] float64, zero at padding choices
    y: Tensor  # [n, C]
    real: Tensor  # [n, C] bool
    places: Mapping[int, slice]  # client -> its questions
    limit: Limit | None

    @classmethod
    def of(
        cls, cohort: Cohort, features: Tensor, explained: Tensor | None = None, limit: Limit | None = None
    ) -> CohortHeadSums:
        """Of the cohort's questions.

        Args:
            features: ``[n, C, F]``; explained: ``[n, C]``; limit: a client's (see :meth:`HeadSums.of`).
        """
        x, y = rows_of(features, cohort.real, cohort.answer, explained, limit)
        return cls(x, y, cohort.real, cohort.places, limit)

    @property
    def bytes(self) -> int:
        """Bytes up, of one client."""
        return sent.head_sums(self.x.shape[-1])

    def each(self) -> dict[int, HeadSums]:
        """What every client sends."""
        return {client: self._sums(place).within(self.limit) for client, place in self.places.items()}

    def refused(self) -> dict[int, str]:
        """By client why its sums are left out, as :func:`secure_sum` does; judged by norms and counts."""
        owner = torch.arange(len(self.places)).repeat_interleave(
            torch.tensor([place.stop - place.start for place in self.places.values()])
        )

        def own(values: Tensor) -> Tensor:
            return torch.zeros(len(self.places), *values.shape[1:], dtype=values.dtype).index_add_(0, owner, values)

        xx, yy = own(self.x.square().sum((1, 2))), own(self.y.square().sum(1))
        xy = own(torch.einsum("ncf,nc->nf", self.x, self.y)).square().sum(1)
        n, questions = own(self.real.double().sum(1)), own(torch.ones(len(owner), dtype=torch.float64))
        fine = torch.isfinite(xx) & torch.isfinite(yy) & torch.isfinite(xy)
        if self.limit is not None:
            share = torch.tensor([self.limit.share(*pair) for pair in zip(n.tolist(), questions.tolist(), strict=True)])
            n, questions = n * share, questions * share
            fine &= (questions <= n.clamp(max=self.limit.examples * SLACK)) & (n <= self.limit.rows * SLACK)
            fine &= (xx * share <= n * self.limit.x**2 * SLACK) & (yy * share <= questions * self.limit.y**2 * SLACK)
            fine &= xy <= xx * yy * SLACK
        if bool(fine.all()):
            return {}
        limits = {} if self.limit is None else {"": self.limit}
        return secure_sum([(client, {"": sums}) for client, sums in self.each().items()], limits)[1]

    def total(self, without: Container[int] = ()) -> HeadSums:
        """The sum over all clients but some."""
        kept = {client: place for client, place in self.places.items() if client not in without}
        if len(kept) < len(self.places):
            index = torch.tensor([q for place in kept.values() for q in range(place.start, place.stop)])
            places = dict(zip(kept, cuts(p.stop - p.start for p in kept.values()), strict=True))
            return CohortHeadSums(self.x[index], self.y[index], self.real[index], places, self.limit).total()
        whole = self._sums(slice(None))
        if self.limit is None or self.limit.share(float(whole.n), float(whole.questions)) == 1:  # so is every client's
            return whole
        return sum(self.each().values(), start=HeadSums.zeros(self.x.shape[-1]))

    def _sums(self, place: slice) -> HeadSums:
        x, y, real = self.x[place].flatten(0, 1), self.y[place].flatten(), self.real[place]
        questions = torch.tensor(float(len(real)), dtype=torch.float64)
        return HeadSums(x.T @ x, x.T @ y, y @ y, real.sum().double(), questions)


def head_totals(
    sums: Mapping[K, CohortHeadSums], liars: Liars, least: int = 1
) -> tuple[dict[K, HeadSums], dict[int, str]]:
    """What :func:`secure_sum` makes of the clients' sums: totals by key, and who was left out and why."""
    if liars.in_sums:
        limits = {key: own.limit for key, own in sums.items() if own.limit is not None}
        each = {key: own.each() for key, own in sums.items()}
        clients = next(iter(each.values()), {})
        replies = [(client, {key: own[client] for key, own in each.items()}) for client in clients]
        return secure_sum(liars.head_sums(replies, limits), limits, least)
    refused: dict[int, str] = {}
    for own in sums.values():
        refused = own.refused() | refused
    answered = {client for own in sums.values() for client in own.places}
    enough = len(answered - refused.keys()) >= least
    return {key: own.total(refused) for key, own in sums.items() if enough}, refused


def refusals(round_: int, refused: Mapping[int, str]) -> list[dict[str, Any]]:
    """Rows of clients whose sums were refused, as ``State.dropped`` has them."""
    return [{"round": round_, "client": c, "chain": "", "block": "", "why": why} for c, why in refused.items()]


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

    def of(self, chain: Chain, block: str, limit: Limit) -> Sequence[LinearSums]:
        """Every client's statistics of a candidate's adapter."""
        before = self._cohort.pool.before(block)
        assert before is not None  # a start block has none
        (x, xx, sx), (y, yy, sy, n) = self._arriving(chain, limit.x), self._received(before, limit.y)
        xy = (x.mT @ y).unbind()
        return [LinearSums(*own).within(limit) for own in zip(xx, xy, sx, sy, yy, n, strict=True)]

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
