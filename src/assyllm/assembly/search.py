"""The search over chains: beam, winners stacked, paths that end (paper section 3.1). Pure functions.

Every start block is a root. A round stacks each of the K winners on each chain; the best ``beam`` open chains
go on. A chain is finished when a terminating block ends it, at the depth limit, or when nothing may follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from assyllm.blocks.pool import Pool
from assyllm.comparator import compatibility as by

Ended = Literal["open", "terminating", "depth", "exhausted"]


@dataclass(frozen=True, slots=True)
class Chain:
    """Block ids in order, and the score of each block with what came before it.

    Scores are compatibilities of the joins (none for a root), or under a rule that reads labels each block's gain in
    log evidence.
    """

    blocks: tuple[str, ...]
    scores: tuple[float, ...] = ()
    ended: Ended = "open"

    @property
    def id(self) -> str:
        """The chain's name."""
        return "+".join(self.blocks)

    def worth(self, adding: bool = False) -> float:
        """What the chain is ranked by: its scores' mean, 0 for a root; their sum if they add up (gains do).

        A mean of gains would prefer the chain that stopped before its last, smaller gain.
        """
        total = sum(self.scores)
        return total if adding else total / max(1, len(self.scores))

    def then(self, block: str, score: float, ended: Ended) -> Chain:
        """The chain with one more block."""
        return Chain((*self.blocks, block), (*self.scores, score), ended)

    def to_json(self) -> dict[str, Any]:
        """For checkpoints."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Chain:
        """The inverse of :meth:`to_json`."""
        return cls(tuple(raw["blocks"]), tuple(raw["scores"]), raw["ended"])


def roots(pool: Pool) -> list[Chain]:
    """Every start block as a chain of its own."""
    return [Chain((block,)) for block in pool.ids if pool.info(block).kind == "start"]


def shortlist(
    pool: Pool, chain: Chain, rule: by.Rule, score: Callable[[str, str], float | None], count: int
) -> list[str]:
    """The blocks that clients evaluate after a chain: the best ``count`` by a score that needs no chain.

    Args:
        score: compatibility of the chain's last block with a candidate, both in their own models.
    """
    found = by.eligible(pool, chain.blocks, rule)
    return by.best({block: score(chain.blocks[-1], block) for block in found}, count)


def grow(
    pool: Pool,
    chains: Sequence[Chain],
    winners: Mapping[str, Sequence[tuple[str, float]]],
    beam: int,
    max_blocks: int,
) -> tuple[list[Chain], list[Chain]]:
    """Stack the winners.

    Args:
        winners: chain id -> (block, compatibility) pairs, none where nothing could follow.

    Returns:
        Open chains, best first and at most ``beam``; chains that finished.
    """
    still: list[Chain] = []
    finished: list[Chain] = []
    for chain in chains:
        found = winners.get(chain.id, ())
        if not found and len(chain.blocks) > 1:
            finished.append(Chain(chain.blocks, chain.scores, "exhausted"))
        for block, score in found:
            end = pool.info(block).kind == "end"
            ended: Ended = "terminating" if end else "depth" if len(chain.blocks) + 1 >= max_blocks else "open"
            (still if ended == "open" else finished).append(chain.then(block, score, ended))
    return ranked(still)[:beam], finished


def apart(chains: Sequence[Chain], beam: int) -> list[Chain]:
    """The best chain of each start block, the best ``beam`` of those.

    A beam of the best chains whatever they begin with is soon one chain with two last blocks: a poor start is never
    left again.
    """
    found: dict[str, Chain] = {}
    for chain in ranked(chains):
        found.setdefault(chain.blocks[0], chain)
    return list(found.values())[:beam]


def ranked(chains: Sequence[Chain], adding: bool = False) -> list[Chain]:
    """Chains by their worth, best first, ties by id."""
    return sorted(chains, key=lambda chain: (-round(chain.worth(adding), by.DECIMALS), chain.id))
