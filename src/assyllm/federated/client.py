"""What a device does in a round: forward passes, a few inner products, its K best ids. A pure function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

from torch import Tensor

from assyllm.adapter.linear import LinearSums
from assyllm.comparator import compatibility as by
from assyllm.comparator.cka import Estimator, paired_terms
from assyllm.federated.messages import CandidateSums, ScoreReply, ScoreTask, Vote


class ClientData(Protocol):
    """What a client can compute on its own examples.

    Rows are examples: (question, choice) for features, and each of their pooled vectors for adapters.
    """

    client: int
    examples: int

    def assembled(self, chain: tuple[str, ...], block: str) -> Tensor:
        """X: features ``[n, F]`` of the candidate's output when it follows the chain."""

    def native(self, block: str) -> Tensor:
        """Y: features ``[n, F]`` of the same block's output inside its own model."""

    def arriving(self, chain: tuple[str, ...]) -> Tensor:
        """Pooled states ``[r, d]`` at the end of the chain."""

    def received(self, block: str) -> Tensor | None:
        """Pooled states ``[r, e]`` that the block natively receives; None for a start block."""


def client_step(task: ScoreTask, data: ClientData) -> ScoreReply:
    """Score every candidate (paper section 3.2), vote for the K best, add the adapters' statistics.

    The statistics are of all candidates that the task names: of those voted for only they would undo the sum, because
    votes are visible, X'X is the same for every candidate of a chain, and totals over voters that differ by one client
    differ by its X'X. A client with too few examples for CKA has no score, so it votes for nothing; its terms are zero.
    It keeps the task's limits: long rows are cut, and it claims no more examples than it may. The simulator asks a
    whole cohort at once (:mod:`assyllm.federated.simulate`).
    """
    votes: list[Vote] = []
    sums: dict[tuple[str, str], CandidateSums] = {}
    for chain, blocks in task.candidates.items():
        terms = {}
        for block in blocks:
            x, y = data.assembled(chain, block).double(), data.native(block).double()
            terms[block] = paired_terms(x[None], y[None], task.batch, cast(Estimator, task.estimator))
        votes += ballot(task, chain, {b: float(t.cka()[0]) if t.scored()[0] else None for b, t in terms.items()})
        for block in blocks:
            key = ("+".join(chain), block)
            target = data.received(block) if key in task.adapted else None
            limit = task.limit(key)
            adapter = LinearSums.of(data.arriving(chain), target, limit) if target is not None else None
            sums[key] = CandidateSums(terms[block].within(limit.choices), adapter)
    return ScoreReply(data.client, task.round, task.claimed(data.examples), tuple(votes), sums)


def ballot(task: ScoreTask, chain: tuple[str, ...], cka: Mapping[str, float | None]) -> list[Vote]:
    """A client's votes on a chain, best first, from the CKA that it measured (None: no score)."""
    name = "+".join(chain)
    scores = {
        block: task.random[name, block] if task.random else by.compatibility(known, task.cor[name, block], task.weight)
        for block, known in cka.items()
    }
    best = by.best(scores, task.ballot(chain))
    return [Vote(name, block, round(scores[block] or 0.0, by.DECIMALS)) for block in best]
