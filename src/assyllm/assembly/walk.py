"""Running chains over one set of questions, every common prefix once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from assyllm.adapter.base import Adapter
from assyllm.adapter.reading import Readings
from assyllm.assembly.head import sketched
from assyllm.blocks.pool import Pool
from assyllm.comparator.activations import advance, pooled
from assyllm.zoo.encoding import combine

Adapters = Mapping[str, Adapter | None]  # edge -> adapter; None where the states fit as they are


def edge(chain: Sequence[str], block: str) -> str:
    """The name of the join between a chain and the block put on it."""
    return "+".join(chain) + ">" + block


def edges(chain: Sequence[str]) -> list[str]:
    """All joins inside a chain, first to last."""
    return [edge(chain[:i], chain[i]) for i in range(1, len(chain))]


class Walker:
    """States of chains on fixed questions, cached by prefix: a longer chain costs one more block, not all of them.

    Args:
        readings: the questions in every model's tokens.
        adapters: every join that will be walked.
    """

    def __init__(self, pool: Pool, readings: Readings, adapters: Adapters) -> None:
        self._pool, self.readings, self._adapters = pool, readings, adapters
        self._states: dict[tuple[str, ...], list[Tensor]] = {}
        self._vectors: dict[tuple[str, ...], Tensor] = {}
        self.passes = 0  # block passes made: what the cache saves can be counted

    def use(self, adapters: Adapters) -> None:
        """Take further adapters; those of chains already walked must be the same."""
        self._adapters = adapters

    def tokens_of(self, chain: Sequence[str]) -> str:
        """The model in whose tokens a chain's stream stands at its end."""
        model = self._pool.info(chain[0]).model
        for i in range(1, len(chain)):
            adapter = self._join(chain[:i], chain[i])
            if self._reads_text(chain[i]) or (adapter is not None and adapter.moves):
                model = self._pool.info(chain[i]).model
        return model

    def _reads_text(self, block: str) -> bool:
        """Whether a block reads the text itself, whatever stands before it."""
        return self._pool.info(block).kind == "start"

    def _join(self, chain: Sequence[str], block: str) -> Adapter | None:
        """The adapter before a chain's next block: none where that reads the text or follows in its own model."""
        natural = bool(chain) and self._pool.before(block) == chain[-1]
        return None if not chain or natural or self._reads_text(block) else self._adapters[edge(chain, block)]

    def states(self, chain: Sequence[str]) -> list[Tensor]:
        """Per-chunk states ``[r, T, d]`` after the chain's last block."""
        key = tuple(chain)
        if key not in self._states:
            self._states[key] = self.extend(key[:-1], key[-1], self._join(key[:-1], key[-1]))
        return self._states[key]

    def extend(self, chain: Sequence[str], block: str, adapter: Adapter | None) -> list[Tensor]:
        """States of ``chain`` followed by ``block`` through an adapter that need not be the chain's own."""
        self.passes += 1
        module, info = self._pool.block(block), self._pool.info(block)
        if not chain or self._reads_text(block):
            return advance(module, None, self.readings.rows(info.model))
        arriving, tokens = self.states(chain), self.tokens_of(chain)
        if adapter is None:
            return advance(module, arriving, self.readings.rows(tokens))
        with torch.no_grad():
            joined, tokens = adapter.through(arriving, self.readings, tokens, info.model, info.causal)
        return advance(module, joined, self.readings.rows(tokens))

    def vectors(self, chain: Sequence[str]) -> Tensor:
        """Pooled vectors ``[N, C, P, d]`` after the chain's last block."""
        key = tuple(chain)
        if key not in self._vectors:
            self._vectors[key] = pooled(self.states(key), self.readings.rows(self.tokens_of(key)))
        return self._vectors[key]

    def candidate(self, chain: Sequence[str], block: str, adapter: Adapter | None) -> Tensor:
        """Pooled vectors ``[N, C, P, d]`` after a candidate that is tried on the chain (not cached)."""
        moved = not chain or self._reads_text(block) or (adapter is not None and adapter.moves)
        tokens = self._pool.info(block).model if moved else self.tokens_of(chain)
        return pooled(self.extend(chain, block, adapter), self.readings.rows(tokens))

    def given(self, chain: Sequence[str], block: str, adapter: Adapter) -> Tensor:
        """Pooled vectors ``[N, C, P, d]`` that an adapter gives to a block, with gradients to the adapter."""
        info = self._pool.info(block)
        given = adapter.through(self.states(chain), self.readings, self.tokens_of(chain), info.model, info.causal)
        return pooled(given[0], self.readings.rows(given[1]))

    def trained(self, chain: Sequence[str], adapters: Mapping[str, Adapter]) -> Tensor:
        """Pooled vectors after a chain, with gradients to some of its adapters (nothing is cached from there on)."""
        begin = next((i for i in range(1, len(chain)) if edge(chain[:i], chain[i]) in adapters), len(chain))
        states, tokens = self.states(chain[:begin]), self.tokens_of(chain[:begin])
        for i in range(begin, len(chain)):
            name, info = edge(chain[:i], chain[i]), self._pool.info(chain[i])
            adapter = adapters.get(name) or self._join(chain[:i], chain[i])
            if adapter is not None:
                states, tokens = adapter.through(states, self.readings, tokens, info.model, info.causal)
            chunks = self.readings.rows(tokens).chunks
            states = [
                self._pool.block(info.id)(hidden, chunk.mask) for hidden, chunk in zip(states, chunks, strict=True)
            ]
        return pooled(states, self.readings.rows(tokens))

    def features(self, chain: Sequence[str], scope: str, sketch_dims: int | None = None) -> Tensor:
        """The head's features ``[N, C, F]``: of the last block, or of every block side by side."""
        parts = [chain] if scope == "last_block" else [chain[: i + 1] for i in range(len(chain))]
        return torch.cat([sketched(combine(self.vectors(part)), sketch_dims, part[-1]) for part in parts], dim=-1)

    def forget(self, keep: Sequence[str] = ()) -> None:
        """Drop cached states that are no prefix of ``keep``."""
        prefixes = {tuple(keep[: i + 1]) for i in range(len(keep))}
        self._states = {key: states for key, states in self._states.items() if key in prefixes}
