"""FwdLLM: gradients estimated by forward passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assyllm.baselines.fwdllm import FwdLLM, combine, slopes, unflatten
from assyllm.baselines.local import Local
from assyllm.baselines.method import HEAD
from assyllm.zoo.forward import Packed
from tiny.training import (
    FORWARD,
    OWNED,
    data,
    gradients,
    model,
    shaken,
)


def test_forward_gradients_point_along_the_true_one_as_directions_grow() -> None:
    subject, batch = FwdLLM(model(), FORWARD), data().train.take(torch.arange(8))
    weights = shaken(subject.start())
    exact = torch.cat([g.flatten() for _, g in sorted(gradients(subject.loss, weights, batch).items())])
    cosines = []
    for number in (16, 256, 4096):
        flat = torch.from_numpy(np.random.default_rng(0).standard_normal((number, len(exact)), dtype=np.float32))
        found = []
        for part in flat.split(128):
            inputs = {name: tensor[None] for name, tensor in batch.tensors().items()}
            with torch.no_grad():
                slope, _ = slopes(subject.loss, weights, unflatten(part[None], weights), Packed(**inputs),
                                  torch.ones(1, 8), "central", 0.01)  # fmt: skip
            found.append(slope[0])
        estimate = torch.cat(found) @ flat
        cosines.append(float(estimate @ exact / estimate.norm() / exact.norm()))
    assert cosines[0] < cosines[1] < cosines[2]
    assert cosines[2] > 0.9


def test_forward_mode_gives_the_slope_that_differences_approach() -> None:
    subject, batch = FwdLLM(model(), FORWARD), data().train.take(torch.arange(6))
    weights = shaken(subject.start())
    exact = gradients(subject.loss, weights, batch)
    direction = shaken({name: torch.zeros_like(t) for name, t in weights.items()}, 1.0)
    true = float(sum((exact[name] * direction[name]).sum() for name in exact))
    inputs = Packed(**{name: tensor[None] for name, tensor in batch.tensors().items()})
    once = {name: tensor[None, None] for name, tensor in direction.items()}
    for estimator, allowed in (("jvp", 1e-4), ("central", 2e-2)):
        slope, value = slopes(subject.loss, weights, once, inputs, torch.ones(1, 6), estimator, 0.005)
        assert float(slope[0, 0]) == pytest.approx(true, rel=allowed)
        assert float(value[0, 0]) == pytest.approx(float(subject.loss(weights, batch, torch.ones(6))), rel=1e-2)


@given(st.integers(2, 6), st.integers(1, 4), st.integers(3, 30))
@settings(max_examples=30, deadline=None)
def test_relative_variance_is_a_share_and_falls_with_agreement(clients: int, directions: int, size: int) -> None:
    draw = torch.Generator().manual_seed(clients * 100 + directions * 10 + size)
    estimates = torch.randn(clients, directions, size, generator=draw)
    shares = torch.full((clients,), 1 / clients)
    mean, variance = combine(estimates, shares)
    assert torch.allclose(mean, estimates.mean((0, 1)), atol=1e-5)
    assert 0 <= variance <= 1
    assert combine(torch.ones(clients, directions, size), shares)[1] == pytest.approx(0, abs=1e-6)


def test_the_heads_gradient_is_exact_over_the_cohort() -> None:
    subject, clients = FwdLLM(model(), FORWARD), [(0, [0, 1, 2]), (1, [5]), (2, [6, 7])]
    weights = shaken(subject.start())
    exact = gradients(subject.loss, weights, data().train.take(torch.tensor([0, 1, 2, 5, 6, 7])))
    moved, _ = subject.train(weights, data().train, clients, Local(1.0, 1, 4), 0, 1)
    assert torch.allclose(weights[HEAD] - moved[HEAD], exact[HEAD], atol=1e-6)


def test_a_device_steps_along_its_own_estimate() -> None:
    subject, batch = FwdLLM(model(), FORWARD), data().train.take(torch.arange(4))
    weights = shaken(subject.start())
    exact, before = gradients(subject.loss, weights, batch), {n: t.clone() for n, t in weights.items()}
    loss = subject.step(weights, [], 1, batch, Local(0.1, 1, 2))
    assert loss == pytest.approx(float(subject.loss(before, batch, torch.ones(4))), rel=0.02)
    change = {name: before[name] - tensor for name, tensor in weights.items()}
    assert torch.allclose(change[HEAD], 0.1 * exact[HEAD], atol=1e-6)
    along = sum(float((exact[name] * change[name]).sum()) for name in exact if name != HEAD)
    assert along > 0, "downhill: a slope times its direction never points up the measured loss"


def test_more_directions_are_asked_for_until_the_variance_is_low(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = FwdLLM._ask

    def ask(self, *arguments):
        asked.append(arguments[5])
        return original(self, *arguments)

    monkeypatch.setattr(FwdLLM, "_ask", ask)
    clients = [(c, items) for c, items in enumerate(OWNED) if items]
    for variance, expected in ((1.0, [0]), (0.0, [0, 1, 2])):
        subject = FwdLLM(model(), FORWARD.model_copy(update={"variance": variance, "max_directions": 6}))
        asked.clear()
        weights = shaken(subject.start())
        size = sum(4 * tensor.numel() for tensor in weights.values())
        subject.train(weights, data().train, clients, Local(1.0, 1, 4), 0, 1)
        assert asked == expected
        estimate = size - 4 * weights[HEAD].numel()
        assert subject.traffic(weights) == (size + (len(expected) - 1) * estimate, size), "an estimate up for each"
        subject.train(weights, data().train, clients, Local(1.0, 1, 4), 0, 2)
        assert subject.traffic(weights)[1] == size + estimate, "the last one down, by which directions are chosen"


def test_directions_are_chosen_by_cosine_with_the_last_estimate() -> None:
    subject = FwdLLM(model(), FORWARD.model_copy(update={"candidates": 50}))
    subject.start()
    assert subject._draw(40, "a").shape == (2, 40)
    subject.last = torch.nn.functional.one_hot(torch.tensor(3), 40).float()
    drawn = subject._draw(40, "a")
    cosine = drawn[:, 3].abs() / drawn.norm(dim=-1)
    assert float(cosine.min()) > 0.25  # of a hundred candidates; a single draw's is .13 on average
