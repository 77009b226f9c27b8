"""Clients that lie, for studies: what leaves their device is changed here, at its edge, and the server is not told.

Liars are the same clients all through a run. They know each other, the task and its bounds. In **votes** they agree
on the block that is worst on their common data, give it the greatest score allowed and the others none, and claim as
many examples as they may. In **sums** (of surveys, probes, heads, adapters; HSIC terms of candidates; gradients of
tuning) they send what their own rows would give with labels or targets turned round, rows as long and as many as the
bounds allow. What blocks are like in their own models (the first round) they tell truly.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from assyllm import params, seeding
from assyllm.adapter.limit import Limit
from assyllm.adapter.linear import LinearSums
from assyllm.assembly.head import HeadSums
from assyllm.comparator import compatibility as by
from assyllm.comparator.cka import HsicTerms
from assyllm.federated.messages import CandidateSums, ScoreReply, ScoreTask, Vote

TIMES = 1000.0  # its own examples that a liar claims where nothing bounds them
K = TypeVar("K", bound=Hashable)


def chosen(seed: int, clients: int, share: float) -> frozenset[int]:
    """The clients that lie: exactly ``share`` of all, rounded; a greater share's contain a smaller one's."""
    order = seeding.rng("liars", seed).permutation(clients)
    return frozenset(int(client) for client in order[: round(share * clients)])


class Liars:
    """The liars of one run; without any, everything passes unchanged."""

    def __init__(self, seed: int, clients: int, federated: params.Federated) -> None:
        found = chosen(seed, clients, federated.liars)
        self.in_votes = found if federated.lie == "votes" else frozenset()
        self.in_sums = found if federated.lie == "sums" else frozenset()

    def replies(self, task: ScoreTask, replies: Sequence[ScoreReply]) -> list[ScoreReply]:
        """A cohort's replies to a task of scoring, as they leave the devices."""
        lying = [reply for reply in replies if reply.client in self.in_votes]
        worst = {chain: _worst(task, chain, lying) for chain in task.candidates} if lying else {}
        sent = [_lie_in_votes(task, reply, worst) if reply.client in self.in_votes else reply for reply in replies]
        return [
            replace(reply, sums={key: _turned(part, task.limit(key)) for key, part in reply.sums.items()})
            if reply.client in self.in_sums
            else reply
            for reply in sent
        ]

    def head_sums(
        self, replies: Sequence[tuple[int, dict[K, HeadSums]]], limits: Mapping[K, Limit]
    ) -> list[tuple[int, dict[K, HeadSums]]]:
        """A cohort's sums for probes or heads, as they leave the devices."""
        return [
            (c, {key: _turned_head(own, limits[key]) for key, own in sums.items()} if c in self.in_sums else sums)
            for c, sums in replies
        ]

    def weights(self, held: Mapping[int, int], most: float) -> dict[int, float]:
        """By client what each of its examples counts in a cohort's gradient; below 0: turned round.

        Args:
            held: client -> its number of examples; ``most``: examples that a client may claim.
        """
        times = {client: TIMES if client in self.in_sums else 1.0 for client in held}
        sign = {client: -1 if client in self.in_sums else 1 for client in held}
        return {c: sign[c] * min(times[c] * number, most) / number for c, number in held.items()}


def _worst(task: ScoreTask, chain: tuple[str, ...], lying: Sequence[ScoreReply]) -> str:
    """The block of least compatibility on the liars' data together; one that cannot be scored is worse still."""
    name = "+".join(chain)

    def score(block: str) -> tuple[float, str]:
        terms = sum((reply.sums[name, block].hsic for reply in lying), start=HsicTerms.zeros(1))
        known = float(terms.cka()[0]) if terms.scored()[0] else None
        found = task.random.get((name, block), by.compatibility(known, task.cor[name, block], task.weight))
        return (-math.inf if found is None else found), block

    return min(task.candidates[chain], key=score)


def _lie_in_votes(task: ScoreTask, reply: ScoreReply, worst: Mapping[tuple[str, ...], str]) -> ScoreReply:
    votes: list[Vote] = []
    for chain, blocks in task.candidates.items():
        order = sorted(blocks, key=lambda block: block != worst[chain])
        votes += [Vote("+".join(chain), block, float(block == worst[chain])) for block in order[: task.ballot(chain)]]
    claimed = min(TIMES * reply.examples, task.most)
    return replace(reply, votes=tuple(votes), examples=int(claimed))


def _turned(part: CandidateSums, limit: Limit) -> CandidateSums:
    """HSIC terms and adapter sums of a candidate, turned round."""
    hsic, n = part.hsic, part.hsic.rows
    many = hsic.scaled(_times(limit.choices / n) if n else 1.0)
    terms = HsicTerms(-many.xy, many.xx, many.yy, many.rows)
    own = part.adapter
    if own is None:
        return CandidateSums(terms, None)
    a, b, s = _stretch(limit, float(own.xx.diagonal().sum() / own.n), float(own.yy / own.n), float(own.n), 0.0)
    parts = (s * a * a * own.xx, s * a * b * own.xy, s * a * own.x, s * b * own.y, s * b * b * own.yy, s * own.n)
    return CandidateSums(terms, LinearSums(*parts))


def _turned_head(own: HeadSums, limit: Limit) -> HeadSums:
    """A head's sums as of labels turned round."""
    n, questions = float(own.n), float(own.questions)
    a, b, s = _stretch(limit, float(own.xx.diagonal().sum()) / n, float(own.yy) / questions, n, questions)
    return HeadSums(s * a * a * own.xx, s * a * b * own.xy, s * b * b * own.yy, s * own.n, s * own.questions)


def _stretch(limit: Limit, x: float, y: float, rows: float, examples: float) -> tuple[float, float, float]:
    """By what a liar multiplies its rows and its targets (turned round), and how often it counts each.

    Args:
        x: its rows' mean squared norm; ``y``: its targets'.
    """
    a = limit.x / math.sqrt(x) if math.isfinite(limit.x) and x > 0 else 1.0
    b = limit.y / math.sqrt(y) if math.isfinite(limit.y) and y > 0 else 1.0
    return a, -b, _times(min(limit.rows / rows, limit.examples / examples if examples else math.inf))


def _times(most: float) -> float:
    """As often as allowed; :data:`TIMES` where everything is."""
    return most if math.isfinite(most) else TIMES
