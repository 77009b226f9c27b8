"""What travels between server and clients, frozen and typed; a transport may carry it later.

Two channels leave a device: **votes** (block ids and scores: small, visible) and **sums** (statistics of which
only the total over the cohort is wanted). Every message knows its bytes: ids take 2, numbers 4 (float32).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from assyllm.adapter.limit import SLACK, Limit
from assyllm.adapter.linear import LinearSums
from assyllm.adapter.sent import ID, NUMBER
from assyllm.comparator.cka import HsicTerms


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """Evaluate candidates on chains.

    Attributes:
        candidates: chain (its blocks) -> block ids to evaluate on it.
        cor: (chain id, block) -> COR, known since initialisation.
        kept: K, how many ids a client votes for on each chain.
        weight: w of the compatibility.
        random: (chain id, block) -> score to use instead of measuring (the rule ``random``), or empty.
        adapter_bytes: of all distinct adapters that come with the task.
        vote: how votes are counted (weighted, median or borda). The robust ones hear a client on every candidate.
        limits: (chain id, block) -> bounds on a client's sums for it; none where there is no entry.
        adapted: (chain id, block) of the candidates whose adapters' statistics every client sends -> the widths
            that the adapter maps from and to.
        most: examples that a client may claim with its votes.
        least: clients whose statistics are added up; of fewer nothing is learnt.
    """

    round: int
    candidates: Mapping[tuple[str, ...], tuple[str, ...]]
    cor: Mapping[tuple[str, str], float]
    kept: int
    weight: float
    batch: int
    estimator: str
    adapter_bytes: int
    random: Mapping[tuple[str, str], float] = field(default_factory=dict)
    vote: str = "weighted"
    limits: Mapping[tuple[str, str], Limit] = field(default_factory=dict)
    adapted: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    most: float = math.inf
    least: int = 1

    def limit(self, key: tuple[str, str]) -> Limit:
        """The bounds on a client's sums for (chain id, block)."""
        return self.limits.get(key, Limit())

    def claimed(self, examples: int) -> int:
        """How many of its examples an honest client claims."""
        return int(min(examples, self.most))

    def ballot(self, chain: tuple[str, ...]) -> int:
        """How many blocks a client votes for on a chain."""
        return self.kept if self.vote == "weighted" else len(self.candidates[chain])

    @property
    def bytes(self) -> int:
        """Bytes down to one client."""
        ids = sum(len(chain) + len(blocks) for chain, blocks in self.candidates.items())
        return ids * ID + len(self.cor) * NUMBER + self.adapter_bytes


@dataclass(frozen=True, slots=True)
class ProbeTask:
    """Probe candidates on chains.

    Attributes:
        candidates: chain (its blocks, none at first) -> block ids to probe on it.
        heads: chain id -> weights ``[F]`` of the head that its blocks have so far.
        adapter_bytes: of all distinct adapters that come with the task.
        random: (chain id, block) -> score to use instead of probing (the rule ``probe_random``), or empty.
        limits: (chain id, block) -> bounds on a client's sums for it.
    """

    round: int
    candidates: Mapping[tuple[str, ...], tuple[str, ...]]
    heads: Mapping[str, Tensor]
    adapter_bytes: int
    random: Mapping[tuple[str, str], float] = field(default_factory=dict)
    limits: Mapping[tuple[str, str], Limit] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes down to one client."""
        ids = sum(len(chain) + len(blocks) for chain, blocks in self.candidates.items())
        return ids * ID + NUMBER * sum(head.numel() for head in self.heads.values()) + self.adapter_bytes


@dataclass(frozen=True, slots=True)
class SurveyTask:
    """Send the head's statistics of all blocks side by side.

    Attributes:
        models: the blocks of every model, first to last.
        dims: features of a block at most; wider ones are sketched.
        limit: bounds on a client's sums.
    """

    round: int
    models: tuple[tuple[str, ...], ...]
    dims: int
    limit: Limit = field(default_factory=Limit)

    @property
    def bytes(self) -> int:
        """Bytes down to one client."""
        return ID * sum(len(blocks) for blocks in self.models)


@dataclass(frozen=True, slots=True)
class Vote:
    """One of a client's K best blocks on one chain, with its compatibility on the client's data."""

    chain: str
    block: str
    score: float


@dataclass(frozen=True, slots=True)
class CandidateSums:
    """A client's part of the sums for one candidate: HSIC terms; the adapter's statistics where it needs one."""

    hsic: HsicTerms
    adapter: LinearSums | None

    def __add__(self, other: CandidateSums) -> CandidateSums:
        a, b = self.adapter, other.adapter
        return CandidateSums(self.hsic + other.hsic, a + b if a is not None and b is not None else a or b)

    def parts(self) -> tuple[Tensor, ...]:
        """What travels."""
        terms = tuple(torch.from_numpy(term) for term in (self.hsic.xy, self.hsic.xx, self.hsic.yy))
        return terms if self.adapter is None else (*terms, *self.adapter.parts())

    def fits(self, widths: tuple[int, int] | None) -> bool:
        """Whether the parts are of the shapes that were asked for; ``widths``: of the adapter, None for none."""
        terms = (self.hsic.xy, self.hsic.xx, self.hsic.yy)
        if not all(isinstance(term, np.ndarray) and term.shape == (1,) and term.dtype.kind == "f" for term in terms):
            return False
        if self.adapter is None or widths is None:
            return self.adapter is None and widths is None
        return self.adapter.fits(*widths)

    def breaks(self, limit: Limit) -> str:
        """Which bound a client's part breaks, "" if none; of HSIC terms the rows, and what no states can give."""
        if not 0 <= self.hsic.rows <= limit.choices * SLACK:
            return "terms of more rows than allowed"
        if not self.hsic.possible():
            return "terms that no states have"
        return self.adapter.breaks(limit) if self.adapter is not None else ""

    @property
    def bytes(self) -> int:
        """Bytes up."""
        return 3 * NUMBER + (self.adapter.bytes if self.adapter is not None else 0)


@dataclass(frozen=True, slots=True)
class ScoreReply:
    """A client's answer to a :class:`ScoreTask`."""

    client: int
    round: int
    examples: int
    votes: tuple[Vote, ...]
    sums: Mapping[tuple[str, str], CandidateSums]

    @property
    def vote_bytes(self) -> int:
        """Bytes up in the visible channel."""
        return len(self.votes) * (2 * ID + NUMBER) + NUMBER

    @property
    def sum_bytes(self) -> int:
        """Bytes up in the channel of sums; what all candidates of a chain share of their adapters' sums goes once."""
        adapters = [(chain, part.adapter) for (chain, _), part in self.sums.items() if part.adapter is not None]
        shared = {chain: sums.arriving_bytes for chain, sums in adapters}
        every = sum(part.bytes for part in self.sums.values())
        return every - sum(shared[chain] for chain, _ in adapters) + sum(shared.values())


@dataclass(frozen=True, slots=True)
class Dropped:
    """A vote, or a missing one, that the server did not count, and why."""

    round: int
    client: int
    chain: str
    block: str
    why: str
