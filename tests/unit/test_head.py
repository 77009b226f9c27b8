"""The scoring head: sums add up, padding choices never win, a learnable rule is learnt."""

from __future__ import annotations

import pytest
import torch

from assyllm.artifacts import ArtifactError
from assyllm.assembly.head import HeadSums, accuracy, centred, fit_on_dev


def data(n: int = 120, choices: int = 4, width: int = 9):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(n, choices, width, generator=generator) + torch.randn(n, 1, width, generator=generator)
    mask = torch.ones(n, choices, dtype=torch.bool)
    mask[::3, -1] = False
    scores = (features @ torch.randn(width, generator=generator)).masked_fill(~mask, -1e9)
    return features, mask, scores.argmax(-1)


def test_a_linear_rule_is_learnt_and_padding_never_wins() -> None:
    features, mask, answer = data()
    head, ridge, dev = fit_on_dev(HeadSums.of(features, mask, answer), [1e-3, 1.0], features, mask, answer)
    assert dev > 0.9
    assert ridge in (1e-3, 1.0)
    chosen = head(features, mask).argmax(-1)
    assert mask[torch.arange(len(mask)), chosen].all()


def test_sums_over_clients_are_the_pooled_sums() -> None:
    features, mask, answer = data()
    whole = HeadSums.of(features, mask, answer)
    total = HeadSums.zeros(9)
    for i in range(0, 120, 7):
        part = slice(i, i + 7)
        total = total + HeadSums.of(features[part], mask[part], answer[part])
    for a, b in zip(whole.parts(), total.parts(), strict=True):
        torch.testing.assert_close(a, b)
    assert abs(whole.loss(whole.fit(0.1)) - total.loss(total.fit(0.1))) < 1e-6


def test_heads_of_a_grid_are_those_of_each_ridge() -> None:
    sums = HeadSums.of(*data())
    grid = [0.01, 10.0, 1.0]
    before = sums.xx.clone()
    for ridge, head in zip(grid, sums.fits(grid), strict=True):
        assert torch.equal(head.weight, sums.fit(ridge).weight)
    assert torch.equal(sums.xx, before)


def test_what_is_no_question_or_no_ridge_is_refused() -> None:
    features, mask, answer = data()
    with pytest.raises(ArtifactError, match=r"\[N, C, F\], \[N, C\] and \[N\] are expected"):
        HeadSums.of(features, mask, answer[:-1])
    with pytest.raises(ArtifactError, match="an answer is none of 4 choices"):
        HeadSums.of(features, mask, answer + 1)
    sums = HeadSums.of(features, mask, answer)
    with pytest.raises(ArtifactError, match=r"ridge: -0\.01 is not a number from 0"):
        sums.fit(-0.01)
    for grid in ([], [1.0, 0.0]):
        with pytest.raises(ArtifactError, match="numbers above 0 are expected"):
            sums.evidence(grid)


def test_what_choices_share_does_not_matter() -> None:
    features, mask, answer = data()
    shifted = features + 1000 * torch.randn(120, 1, 9)
    torch.testing.assert_close(centred(features.double(), mask), centred(shifted.double(), mask), atol=1e-3, rtol=1e-3)
    head = HeadSums.of(features, mask, answer).fit(0.01)
    assert abs(accuracy(head, features, mask, answer) - accuracy(head, shifted.double(), mask, answer)) < 0.02


def test_stronger_ridge_wins_a_tie() -> None:
    features, mask, answer = data()
    same = torch.zeros_like(features)
    _, ridge, _ = fit_on_dev(HeadSums.of(features, mask, answer), [0.1, 10.0, 1.0], same, mask, answer)
    assert ridge == 10.0
