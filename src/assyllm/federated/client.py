"""What a device does in a round: forward passes, a few inner products, its K best ids. A pure function."""

from __future__ import annotations

from typing import Literal, Protocol, cast

from torch import Tensor

from assyllm.adapter.linear import LinearSums
from assyllm.comparator import compatibility as by
from assyllm.comparator.cka import paired_terms
from assyllm.federated.messages import CandidateSums, ScoreReply, ScoreTask, Vote


class ClientData(Protocol):
    """What a client can compute on its own examples; the simulator computes it for a whole cohort at once.

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
        """Pooled states ``[r, e]`` that the block natively receives; None where no adapter is needed."""

    def natural(self, chain: tuple[str, ...], block: str) -> bool:
        """Whether the block follows the chain's last block in its own model (no adapter then)."""


def client_step(task: ScoreTask, data: ClientData) -> ScoreReply:
    """Score every candidate (paper section 3.2), vote for the K best, add the adapters' statistics for those.

    A client with too few examples for CKA has no score, so it votes for nothing; its terms are zero. It keeps the
    task's limits: long rows are cut, and it claims no more examples than it may.
    """
    votes: list[Vote] = []
    sums: dict[tuple[str, str], CandidateSums] = {}
    estimator = cast(Literal["unbiased", "biased"], task.estimator)
    for chain, blocks in task.candidates.items():
        name = "+".join(chain)
        scores: dict[str, float | None] = {}
        terms = {}
        for block in blocks:
            x, y = data.assembled(chain, block), data.native(block)
            terms[block] = paired_terms(x[None], y[None], task.batch, estimator)
            known = float(terms[block].cka()[0]) if terms[block].scored()[0] else None
            scores[block] = by.compatibility(known, task.cor[name, block], task.weight)
            if task.random:
                scores[block] = task.random[name, block]
        best = by.best(scores, task.ballot(chain))
        votes += [Vote(name, block, round(scores[block] or 0.0, by.DECIMALS)) for block in best]
        for block in blocks:
            wanted = block in best[: task.kept] and not data.natural(chain, block)
            target = data.received(block) if wanted else None
            limit = task.limit((name, block))
            adapter = LinearSums.of(data.arriving(chain), target, limit) if target is not None else None
            share = min(1.0, limit.choices / max(1, terms[block].rows))
            sent = terms[block] if share == 1 else terms[block].scaled(share)
            sums[name, block] = CandidateSums(sent, adapter)
    return ScoreReply(data.client, task.round, int(min(data.examples, task.most)), tuple(votes), sums)
