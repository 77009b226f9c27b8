"""What CKA and COR must satisfy whatever the states are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assyllm.artifacts import ArtifactError
from assyllm.comparator.cka import (
    HsicTerms,
    all_pairs,
    centred_grams,
    cka,
    column_scale,
    minibatches,
    pair_terms,
    paired_terms,
)
from assyllm.comparator.compatibility import best, compatibility
from assyllm.comparator.cor import cor, counts

ESTIMATORS = st.sampled_from(["unbiased", "biased"])
SEEDS = st.integers(0, 10_000)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(4, 40), st.integers(1, 12), ESTIMATORS)
def test_cka_of_states_with_themselves_is_one(seed, rows, width, estimator) -> None:
    x = normal(seed, rows, width)
    assert cka(x, x, estimator=estimator) == pytest.approx(1, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(8, 40), st.floats(1e-2, 1e3), ESTIMATORS)
def test_cka_ignores_rotation_scale_shift_and_order(seed, rows, scale, estimator) -> None:
    x, y = normal(seed, rows, 6), normal(seed + 1, rows, 5)
    y = y + x[:, :5]
    rotation = torch.linalg.qr(normal(seed + 2, 6, 6)).Q
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    expected = cka(x, y, estimator=estimator)
    assert cka(scale * x @ rotation + 7, y, estimator=estimator) == pytest.approx(expected, abs=2e-3)
    assert cka(y, x, estimator=estimator) == pytest.approx(expected, abs=1e-4)
    assert cka(x[order], y[order], estimator=estimator) == pytest.approx(expected, abs=1e-4)
    assert abs(expected) <= 1 + 1e-5


@pytest.mark.parametrize("power", [-100, -60, -3, 5, 60, 100])
def test_the_size_of_states_changes_no_bit(power) -> None:
    """Squares of squares of float32 leave its range far before the states do."""
    x, y = normal(0, 40, 7), normal(1, 40, 5)
    scaled = torch.ldexp(x, torch.tensor(power)).requires_grad_()
    assert cka(scaled, y) == cka(x, y) == cka(y, scaled)


def test_independent_states_score_zero_only_without_bias() -> None:
    scores = [cka(normal(i, 32, 1024), normal(i + 1000, 32, 1024)) for i in range(200)]
    assert abs(float(np.mean(scores))) < 0.015
    assert cka(normal(0, 32, 1024), normal(1, 32, 1024), estimator="biased") > 0.9


def test_it_is_songs_estimator() -> None:
    x, y = normal(3, 20, 4).double(), normal(4, 20, 6).double()
    k, l, n = x @ x.T, y @ y.T, 20
    k.fill_diagonal_(0)
    l.fill_diagonal_(0)
    one = torch.ones(n, dtype=torch.float64)
    third = one @ k @ l @ one * 2 / (n - 2)
    expected = ((k @ l).trace() + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - third) / (n * (n - 3))
    assert float(paired_terms(x[None], y[None], 20).xy[0]) / 20 == pytest.approx(float(expected), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.lists(st.integers(0, 40), min_size=1, max_size=6), ESTIMATORS)
def test_clients_sums_are_the_sums_over_all_their_minibatches(seed, sizes, estimator) -> None:
    total = HsicTerms.zeros(1)
    table = np.zeros((2, 2))
    for i, size in enumerate(sizes):
        x, y = normal(seed + i, size, 5), normal(seed + 50 + i, size, 5)
        total = total + paired_terms(x[None], y[None], 16, estimator)
        table = table + all_pairs([x, y], 16, estimator)
    pair = pair_terms(table, 0, 1)
    np.testing.assert_allclose(pair.xy, total.xy[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(pair.xx, total.xx[0], rtol=1e-3, atol=1e-4)
    assert total.rows == sum(size for size in sizes if size >= 4)


@given(st.integers(0, 500), st.integers(4, 64))
def test_minibatches_cover_all_rows_and_none_is_too_small(rows, size) -> None:
    parts = minibatches(rows, size)
    assert [i for part in parts for i in range(rows)[part]] == (list(range(rows)) if rows >= 4 else [])
    assert all(4 <= part.stop - part.start <= size + 4 for part in parts)


def test_no_score_is_said_and_never_nan() -> None:
    flat = paired_terms(torch.ones(1, 8, 3), normal(0, 8, 3)[None], 8)
    assert not flat.scored()[0]
    assert flat.cka()[0] == 0.0
    assert cka(torch.ones(8, 3), normal(0, 8, 3)) is None
    assert not paired_terms(normal(0, 3, 2)[None], normal(1, 3, 2)[None], 8).scored()[0]
    infinite = paired_terms(torch.full((1, 8, 3), float("inf")), normal(0, 8, 3)[None], 8)
    assert not infinite.scored()[0]
    with pytest.raises(ArtifactError, match="at least 4"):
        centred_grams(normal(0, 1, 3, 2), "unbiased")


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"states \[n, d\] and \[n, e\]"):
        cka(normal(0, 9), normal(0, 9))
    x = normal(0, 40, 16)
    with pytest.raises(ArtifactError, match=r"the same examples: \[40, 80\]"):
        cka(x, torch.cat([x, x]))
    with pytest.raises(ArtifactError, match=r"the same examples: \[40, 80\]"):
        all_pairs([x, torch.cat([x, x])], 40)
    with pytest.raises(ArtifactError, match="estimator: 'hsic1' is none of unbiased, biased"):
        cka(x, x, estimator="hsic1")
    with pytest.raises(ArtifactError, match="minibatches of -5"):
        cka(x, x, batch=-5)
    assert cka(torch.full((40, 16), 0.1), torch.full((40, 8), 0.3)) is None


def test_dead_columns_do_not_silence_the_living() -> None:
    x = torch.cat([normal(1, 40, 6), torch.zeros(40, 10)], 1)
    assert torch.equal(column_scale(x)[:6], column_scale(x[:, :6]))
    assert bool((column_scale(x) > 0).all())
    assert bool((column_scale(torch.zeros(40, 3)) == 1).all())


def test_half_precision_is_upcast_and_outliers_are_tamed() -> None:
    x = normal(0, 32, 16)
    x[:, 0] *= 3000
    assert cka(x.half(), x.half()) == pytest.approx(1, abs=1e-3)
    scaled = x * column_scale(x)
    assert float(scaled.std(0)[0] / scaled.std(0).median()) < 10
    assert torch.equal(column_scale(normal(1, 50, 8)), torch.ones(8))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(1, 5))
def test_cor_is_in_zero_one_and_one_for_equal_layers(seed, left, right) -> None:
    draw = np.random.default_rng(seed)
    p, q = draw.integers(0, 100, (left, 16)), draw.integers(0, 100, (right, 16))
    assert 0 < cor(p, q) <= 1
    assert cor(p, p) == 1.0


def test_histograms_add_up_over_clients_and_skip_what_is_not_finite() -> None:
    values = normal(0, 30, 4)
    values[0, 0] = float("nan")
    values[1, 0] = float("inf")
    owner = torch.arange(30) % 3
    by_client = counts(values, 1.0, 8, owner, 3)
    assert by_client.sum() == 118
    np.testing.assert_array_equal(by_client.sum(0), counts(values, 1.0, 8, torch.zeros(30, dtype=torch.int64), 1)[0])


def test_best_rounds_breaks_ties_by_id_and_skips_what_has_no_score() -> None:
    assert best({"b": 0.50001, "a": 0.50004, "c": None, "d": 0.4}, 2) == ["a", "b"]
    assert compatibility(None, 0.5, 0.5) is None
    assert compatibility(None, 0.5, 0.0) == 0.5
    assert compatibility(0.8, 0.4, 0.5) == pytest.approx(0.6)


def test_states_alike_but_for_one_example_have_no_score() -> None:
    x = np.random.default_rng(0).standard_normal((1, 16)).repeat(40, 0)
    x[0] += 1
    assert cka(torch.from_numpy(x), torch.randn(40, 8, generator=torch.Generator().manual_seed(0))) is None
