"""Running chains over one set of questions, every common prefix once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from assyllm.adapter.linear import LinearAdapter
from assyllm.blocks.pool import Pool
from assyllm.comparator.activations import Rows, advance, pooled
from assyllm.zoo.encoding import combine

Adapters = Mapping[str, LinearAdapter | None]  # edge -> adapter; None where the states fit as they are


def edge(chain: Sequence[str], block: str) -> str:
    """The name of the join between a chain and the block put on it."""
    return "+".join(chain) + ">" + block


def edges(chain: Sequence[str]) -> list[str]:
    """All joins inside a chain, first to last."""
    return [edge(chain[:i], chain[i]) for i in range(1, len(chain))]


class Walker:
    """States of chains on fixed rows, cached by prefix: a longer chain costs one more block, not all of them.

    Args:
        rows: the questions in the tokens of the chains' start block's model.
        adapters: every join that will be walked.
    """

    def __init__(self, pool: Pool, rows: Rows, adapters: Adapters) -> None:
        self._pool, self._rows, self._adapters = pool, rows, adapters
        self._states: dict[tuple[str, ...], list[Tensor]] = {}
        self._vectors: dict[tuple[str, ...], Tensor] = {}
        self.passes = 0  # block passes made: what the cache saves can be counted

    def use(self, adapters: Adapters) -> None:
        """Take further adapters; those of chains already walked must be the same."""
        self._adapters = adapters

    def states(self, chain: Sequence[str]) -> list[Tensor]:
        """Per-chunk states ``[r, T, d]`` after the chain's last block."""
        key = tuple(chain)
        if key not in self._states:
            if len(key) == 1:
                self._states[key] = self._run(key[0], None)
            else:
                adapter = self._adapters[edge(key[:-1], key[-1])]
                self._states[key] = self.extend(key[:-1], key[-1], adapter)
        return self._states[key]

    def extend(self, chain: Sequence[str], block: str, adapter: LinearAdapter | None) -> list[Tensor]:
        """States of ``chain`` followed by ``block`` through an adapter that need not be the chain's own."""
        arriving = self.states(chain)
        with torch.no_grad():
            joined = arriving if adapter is None else [adapter(states) for states in arriving]
        return self._run(block, joined)

    def vectors(self, chain: Sequence[str]) -> Tensor:
        """Pooled vectors ``[N, C, P, d]`` after the chain's last block."""
        key = tuple(chain)
        if key not in self._vectors:
            self._vectors[key] = pooled(self.states(key), self._rows)
        return self._vectors[key]

    def candidate(self, chain: Sequence[str], block: str, adapter: LinearAdapter | None) -> Tensor:
        """Pooled vectors ``[N, C, P, d]`` after a candidate that is tried on the chain (not cached)."""
        return pooled(self.extend(chain, block, adapter), self._rows)

    def features(self, chain: Sequence[str], scope: str) -> Tensor:
        """The head's features ``[N, C, F]``: of the last block, or of every block side by side."""
        parts = [chain] if scope == "last_block" else [chain[: i + 1] for i in range(len(chain))]
        return torch.cat([combine(self.vectors(part)) for part in parts], dim=-1)

    def forget(self, keep: Sequence[str] = ()) -> None:
        """Drop cached states that are no prefix of ``keep``."""
        prefixes = {tuple(keep[: i + 1]) for i in range(len(keep))}
        self._states = {key: states for key, states in self._states.items() if key in prefixes}

    def _run(self, block: str, states: list[Tensor] | None) -> list[Tensor]:
        self.passes += 1
        return advance(self._pool.block(block), states, self._rows)
