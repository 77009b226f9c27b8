"""Whatever an honest device holds, its sums keep the limit; what is within the limit keeps every bit."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assyllm.adapter.limit import Limit
from assyllm.adapter.linear import LinearSums
from assyllm.assembly.head import HeadSums

numbers = st.floats(1e-3, 1e3)
limits = st.builds(Limit, numbers, numbers, st.integers(1, 40).map(float), st.integers(1, 10).map(float))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(2, 4), numbers, st.booleans(), limits, st.integers(0, 9))
def test_an_honest_device_is_never_refused(number, choices, scale, residual, limit, seed) -> None:
    draw = np.random.default_rng(seed)
    features = torch.tensor(draw.standard_normal((number, choices, 5)) * scale)
    mask = torch.arange(choices) < torch.tensor(draw.integers(2, choices + 1, number))[:, None]
    explained = torch.tensor(draw.standard_normal((number, choices)) * scale) if residual else None
    answer = torch.zeros(number, dtype=torch.int64)
    assert HeadSums.of(features, mask, answer, explained, limit).breaks(limit) == ""
    rows = features[mask]
    assert LinearSums.of(rows, rows[:, :3] * scale, limit).breaks(limit) == ""


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), numbers, st.integers(0, 9))
def test_what_is_within_the_limit_keeps_every_bit(number, scale, seed) -> None:
    draw = np.random.default_rng(seed)
    features = torch.tensor(draw.standard_normal((number, 3, 5)) * scale)
    mask, answer = torch.ones(number, 3, dtype=torch.bool), torch.zeros(number, dtype=torch.int64)
    limit = Limit(float(2 * features.norm(dim=-1).max()), 1.0, 3.0 * number, float(number))
    pairs = [(HeadSums.of(features, mask, answer), HeadSums.of(features, mask, answer, limit=limit))]
    rows = features.flatten(0, 1)
    wide = Limit(limit.x, limit.x, limit.rows)
    pairs.append((LinearSums.of(rows, rows[:, :2]), LinearSums.of(rows, rows[:, :2], wide)))
    for free, bounded in pairs:
        assert all(torch.equal(a, b) for a, b in zip(free.parts(), bounded.parts(), strict=True))
