"""A named seed for every random choice, so that one choice never shifts another.

Seeds come from a checksum of the name, not from Python's ``hash`` (which changes from process to process) and
not from one shared generator (which makes every draw depend on all draws before it).
"""

from __future__ import annotations

import zlib

import numpy as np

Name = str | int


def seed_for(*names: Name) -> int:
    """The 32-bit seed of the choice called ``names``, e.g. ``seed_for("cohort", seed, round)``."""
    return zlib.crc32("/".join(str(name) for name in names).encode())


def rng(*names: Name) -> np.random.Generator:
    """A numpy generator seeded by :func:`seed_for`."""
    return np.random.default_rng(seed_for(*names))
