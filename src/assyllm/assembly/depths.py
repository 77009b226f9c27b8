"""How deep to take each model: the search over sets of blocks that stand in their own context. Pure functions.

A block computes what it does in its own model only behind the blocks before it, so a set of such blocks is a depth of
each model: how many of its blocks, from the first on. What a set is worth is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

Depths = tuple[int, ...]  # by model: how many of its blocks, from the first on


def best(lengths: Sequence[int], most: int, worth: Callable[[Depths], float]) -> Depths:
    """Depths of great worth: grown from nothing by the step that adds most a block, then changed while that helps.

    A step takes one model further, by one block or several, since a first block alone may tell nothing. A change takes
    one model less far and another further, or does one of both. Ties go to greater depths of models named first.

    Args:
        lengths: by model, how many blocks it has.
        most: blocks in all, at least one is taken.
        worth: of depths; asked once for each.
    """
    known: dict[Depths, float] = {(0,) * len(lengths): 0.0}

    def told(depths: Depths) -> float:
        if depths not in known:
            known[depths] = worth(depths)
        return known[depths]

    found = (0,) * len(lengths)
    while steps := list(longer(found, lengths, most)):
        gain, step = max(((told(step) - told(found)) / (sum(step) - sum(found)), step) for step in steps)
        if gain <= 0:
            if any(found):
                break
            step = max((step for step in steps if sum(step) == 1), key=lambda step: (told(step), step))
        found = step
    while True:
        better = max(_changed(found, lengths, most), key=lambda depths: (told(depths), depths), default=found)
        if told(better) <= told(found):
            return found
        found = better


def drawn(lengths: Sequence[int], most: int, rng: np.random.Generator) -> Depths:
    """Depths grown by steps that are drawn at random, all alike, until nothing more fits."""
    found = (0,) * len(lengths)
    while steps := list(longer(found, lengths, most)):
        found = steps[int(rng.integers(len(steps)))]
    return found


def longer(depths: Depths, lengths: Sequence[int], most: int) -> Iterator[Depths]:
    """Every way to take one model further."""
    room = most - sum(depths)
    for i, (depth, length) in enumerate(zip(depths, lengths, strict=True)):
        for more in range(1, min(length - depth, room) + 1):
            yield (*depths[:i], depth + more, *depths[i + 1 :])


def _changed(depths: Depths, lengths: Sequence[int], most: int) -> Iterator[Depths]:
    """Every way to take one model further, one less far, or both."""
    yield from longer(depths, lengths, most)
    for i, depth in enumerate(depths):
        for less in range(depth):
            left = (*depths[:i], less, *depths[i + 1 :])
            if any(left):
                yield left
            for step in longer(left, lengths, most):
                if step[i] == less:
                    yield step
