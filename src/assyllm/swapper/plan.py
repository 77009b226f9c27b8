"""Which layers are in memory: the access plan, the eviction policies, and the bytes that they read. No I/O, no torch.

:class:`Cache` takes one decision an access, in the order of the plan. The engine carries the same decisions out, as
early as they may be; so how much is read never depends on how fast anything is, and :func:`count` tells it without
reading a byte.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assyllm.artifacts import ArtifactError
from assyllm.seeding import rng


def block_of(unit: str) -> str:
    """The block that a unit of swapping (``<block>/<part>``, mostly a layer) belongs to."""
    return unit.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Step:
    """One access: what is read for it (0 bytes if nothing) and what leaves before."""

    position: int
    unit: str
    bytes: int
    evicted: tuple[tuple[str, int], ...]  # (unit, position of its last access so far)

    @property
    def hit(self) -> bool:
        """Whether the unit was in memory."""
        return not self.bytes


class Cache:
    """The units in memory along a plan.

    Args:
        sizes: bytes of every unit in memory.
        budget: bytes; what is in memory never exceeds it.
        policy: a name in :data:`POLICIES`.
        window: accesses that ``plan`` looks ahead; None for the whole plan.
        overlap: keep the unit of the access before, which is computing while the next one is read.
        correlation: (block, block) -> correlation in [0, 1], for ``lru_correlation``; 0 where absent.

    Raises:
        ArtifactError: unknown policy, a window of no access, or a budget below two units, with the bytes needed.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        budget: int,
        policy: str = "plan",
        window: int | None = None,
        overlap: bool = True,
        correlation: Mapping[tuple[str, str], float] | None = None,
        seed: int = 0,
    ) -> None:
        if policy not in POLICIES:
            raise ArtifactError(f"policy {policy!r}: not one of {', '.join(POLICIES)}")
        if window is not None and window < 1:
            raise ArtifactError(f"window: {window} is no number of accesses from 1; None is the whole plan")
        self.sizes, self.budget, self.policy, self.window = sizes, 0, policy, window
        self.overlap, self.correlation = overlap, correlation or {}
        self.draws = rng("eviction", seed)
        self.plan: list[str] = []
        self.position = 0  # of the next access
        self.resident: dict[str, int] = {}  # unit -> position of its last access
        self.bytes = 0  # in memory after the last decision
        self.gap: dict[str, int] = {}  # unit -> accesses between its last two
        self._uses: dict[str, list[int]] = {}
        self.resize(budget)

    def resize(self, budget: int) -> None:
        """Take another budget; :meth:`shrink` then makes room.

        Raises:
            ArtifactError: less than the two largest units need; the old budget stays.
        """
        needed = needed_bytes(self.sizes)
        if budget < needed:
            raise ArtifactError(
                f"budget of {budget} bytes: {needed} needed, for the largest layer in use and the largest next one"
            )
        self.budget = budget

    def extend(self, units: Iterable[str]) -> None:
        """Append to the plan."""
        for unit in units:
            if unit not in self.sizes:
                raise ArtifactError(f"plan: {unit!r} is not in the pool")
            self._uses.setdefault(unit, []).append(len(self.plan))
            self.plan.append(unit)

    def reset(self, position: int, resident: Iterable[str], rest: Sequence[str]) -> None:
        """Go back to ``position`` with these units in memory, and plan ``rest`` from there on."""
        past = self.plan[:position]
        last = {unit: i for i, unit in enumerate(past)}
        self.plan, self._uses, self.position = [], {}, position
        self.extend([*past, *rest])
        self.resident = {unit: last.get(unit, -1) for unit in resident}
        self.bytes = sum(self.sizes[unit] for unit in self.resident)

    def access(self) -> Step:
        """Decide on the next access of the plan."""
        position, unit = self.position, self.plan[self.position]
        size, evicted = 0, []
        if unit not in self.resident:
            size = self.sizes[unit]
            pinned = {self.plan[position - 1]} if self.overlap and position else set()
            evicted = [(gone, self._drop(gone)) for gone in self._victims(size, pinned)]
            self.bytes += size
        else:
            self.gap[unit] = position - self.resident[unit]
        self.resident[unit] = position
        self.position += 1
        return Step(position, unit, size, tuple(evicted))

    def shrink(self, pinned: set[str]) -> list[str]:
        """Evict until the budget holds; ``pinned`` stay."""
        gone = self._victims(0, pinned)
        for unit in gone:
            self._drop(unit)
        return gone

    def _drop(self, unit: str) -> int:
        self.bytes -= self.sizes[unit]
        return self.resident.pop(unit)

    def _victims(self, size: int, pinned: set[str]) -> list[str]:
        excess = self.bytes + size - self.budget
        if excess <= 0:
            return []
        chosen, freed = [], 0
        ranks = POLICIES[self.policy](self, [unit for unit in self.resident if unit not in pinned])
        left = [(rank, unit) for unit, rank in ranks.items()]
        while left and freed < excess:  # few leave at a time: no need to sort them all
            highest = max(left)
            left.remove(highest)
            chosen.append(highest[1])
            freed += self.sizes[highest[1]]
        for unit in reversed(chosen[:-1]):  # small ones stay where a large one alone makes the room
            if freed - self.sizes[unit] >= excess:
                chosen.remove(unit)
                freed -= self.sizes[unit]
        return chosen

    def next_use(self, unit: str, window: int | None) -> float:
        """Position of the unit's next access after the coming one.

        Beyond the window nothing is known: the unit is expected to come again after the gap that it showed last.
        """
        uses = self._uses.get(unit, [])
        place = bisect_right(uses, self.position)
        found = uses[place] if place < len(uses) else math.inf
        if window is None:
            return found
        horizon = self.position + window
        if found <= horizon:
            return found
        expected = self.resident[unit] + self.gap.get(unit, len(self.sizes))
        return max(horizon + 1, expected)


Ranks = dict[str, float]


def _plan(cache: Cache, units: list[str]) -> Ranks:
    return {unit: cache.next_use(unit, cache.window) for unit in units}


def _belady(cache: Cache, units: list[str]) -> Ranks:
    return {unit: cache.next_use(unit, None) for unit in units}


def _lru(cache: Cache, units: list[str]) -> Ranks:
    return {unit: -cache.resident[unit] for unit in units}


def _lru_correlation(cache: Cache, units: list[str]) -> Ranks:
    """Age plus lack of correlation with the block at work, both in [0, 1].

    The paper (section 3.5) gives no formula for joining the two; the plain sum of age rank and 1 - correlation is
    our reading.
    """
    current = block_of(cache.plan[min(cache.position, len(cache.plan) - 1)])
    order = sorted(units, key=lambda unit: (-cache.resident[unit], unit))  # youngest first
    age = {unit: i / max(1, len(order) - 1) for i, unit in enumerate(order)}
    return {unit: age[unit] + 1 - _related(cache.correlation, current, block_of(unit)) for unit in units}


def _related(correlation: Mapping[tuple[str, str], float], a: str, b: str) -> float:
    return 1.0 if a == b else correlation.get((a, b), correlation.get((b, a), 0.0))


def _mru(cache: Cache, units: list[str]) -> Ranks:
    return {unit: float(cache.resident[unit]) for unit in units}


def _random(cache: Cache, units: list[str]) -> Ranks:
    return dict(zip(sorted(units), cache.draws.random(len(units)).tolist(), strict=True))


# what leaves first has the highest rank
POLICIES: dict[str, Callable[[Cache, list[str]], Ranks]] = {
    "plan": _plan,  # farthest next use within the window
    "belady": _belady,  # farthest next use, the whole future known
    "lru": _lru,  # least recently used
    "lru_correlation": _lru_correlation,  # the paper's
    "mru": _mru,  # most recently used
    "random": _random,
}


def needed_bytes(sizes: Mapping[str, int]) -> int:
    """The smallest budget: the largest unit in use and the next largest being read."""
    return sum(sorted(sizes.values(), reverse=True)[:2])


def count(
    plan: Sequence[str], sizes: Mapping[str, int], budget: int, policy: str = "plan", **options: Any
) -> list[Step]:
    """Every decision along a plan: reads and bytes without reading anything (options as for :class:`Cache`)."""
    cache = Cache(sizes, budget, policy, **options)
    cache.extend(plan)
    return [cache.access() for _ in plan]


def hit_rate(steps: Sequence[Step]) -> float:
    """Share of accesses that read nothing."""
    return float(np.mean([step.hit for step in steps])) if steps else 0.0
