"""The server's adapters, fitted on its public text (and on the cohorts' sums where the kind takes them)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from assyllm import params
from assyllm.adapter import fixed_attention
from assyllm.adapter.base import Adapter
from assyllm.adapter.linear import LinearAdapter, LinearSums
from assyllm.adapter.reading import readings
from assyllm.assembly.walk import Walker, edge
from assyllm.blocks.pool import Pool
from assyllm.comparator import compatibility as by
from assyllm.federated.data import TaskData

Chain = tuple[str, ...]


class Joins:
    """Adapters for any block on any chain.

    Args:
        settings: kinds ``linear`` and ``cross_attention``: the projection of pooled states (rows are examples,
            so that clients can add theirs; attention is added when it is trained); kind ``fixed_attention``: see
            :mod:`assyllm.adapter.fixed_attention` (rows are public tokens).
    """

    def __init__(self, pool: Pool, data: TaskData, settings: params.Adapter) -> None:
        self._pool, self._data, self._settings = pool, data, settings
        self.readings = readings(pool, lambda model: data.encoded(pool, model, "public"))
        # every block in its own model: no adapter anywhere
        self._native = Walker(pool, self.readings, {})
        self._walker = Walker(pool, self.readings, {})
        self._rereading: dict[str, fixed_attention.Rereading] = {}
        self._unread: dict[str, list[Tensor]] = {}  # per chunk, what the re-reading of a block leaves unexplained
        self._scoring: dict[str, Adapter | None] = {}

    def use(self, joined: Mapping[str, Adapter | None]) -> None:
        """Take the adapters of the chains so far; candidates on longer chains are fitted anew."""
        self._walker.use(joined)
        self._scoring.clear()

    @property
    def from_clients(self) -> bool:
        """Whether a candidate's adapter takes the cohorts' sums as well."""
        return self._settings.kind != "fixed_attention"

    def scoring(self, chain: Chain, block: str) -> Adapter | None:
        """The adapter that a candidate is tried with.

        None for a natural continuation, and for what reads the text itself: a chain's first block, or blocks that enter
        together (:func:`assyllm.comparator.compatibility.entering`).
        """
        first = by.blocks_of(block)[0]
        if not chain or self._pool.info(first).kind == "start" or self._pool.before(block) == chain[-1]:
            return None
        name = edge(chain, block)
        if name not in self._scoring:
            self._scoring[name] = self._fit(chain, block)
        return self._scoring[name]

    def refit(self, chain: Chain, block: str, given: LinearSums | None) -> Adapter | None:
        """The adapter that a winner keeps: with the cohorts' sums, where they were asked for."""
        if given is None or not self.from_clients:
            return self.scoring(chain, block)
        return (self._pooled_sums(chain, block) + given).fit(self._settings.ridge)

    def unexplained(self, chain: Chain, block: str, adapter: LinearAdapter) -> float:
        """The share of variance that a projection leaves unexplained on public text."""
        return self._pooled_sums(chain, block).unexplained(adapter)

    def _fit(self, chain: Chain, block: str) -> Adapter:
        ridge = self._settings.ridge
        if self.from_clients:
            return self._pooled_sums(chain, block).fit(ridge)
        rereading = self._block_part(block)
        return fixed_attention.fit(rereading, self._token_sums(chain, block), ridge, self._settings.rank)

    def _pooled_sums(self, chain: Chain, block: str) -> LinearSums:
        before = self._pool.before(block)
        assert before is not None
        arriving, received = self._walker.vectors(chain), self._data.public.pooled[before]
        return LinearSums.of(arriving.flatten(0, 2), received.flatten(0, 2))

    def _block_part(self, block: str) -> fixed_attention.Rereading:
        if block not in self._rereading:
            info = self._pool.info(block)
            native = self._native.states(self._pool.prefix(block))
            joins = self.readings.joins(info.model, info.model, info.causal)
            pairs = list(zip(joins, native, strict=True))
            sums = [LinearSums.of(fixed_attention.patterns(j)[j.mask], states[j.mask]) for j, states in pairs]
            whole = sum(sums[1:], start=sums[0])
            self._rereading[block] = fixed_attention.fit_rereading(whole, self._settings.ridge)
            self._unread[block] = [states - self._rereading[block](join) for join, states in pairs]
        return self._rereading[block]

    def _token_sums(self, chain: Chain, block: str) -> LinearSums:
        info = self._pool.info(block)
        joins = self.readings.joins(self._walker.tokens_of(chain), info.model, info.causal)
        parts = zip(joins, self._walker.states(chain), self._unread[block], strict=True)
        sums = [LinearSums.of(join.arriving(states)[join.mask], unread[join.mask]) for join, states, unread in parts]
        return sum(sums[1:], start=sums[0])
