"""Recomputation and swapping: the gradients and the rounds of full fine-tuning, a layer at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from assyllm.artifacts import ArtifactError
from assyllm.baselines.full import FullFineTuning
from assyllm.baselines.layered import Layered
from assyllm.baselines.local import Local, Weights, train_client
from assyllm.baselines.recomputation import Recomputation
from assyllm.baselines.rounds import Plan
from assyllm.baselines.sharing import compare
from assyllm.baselines.stream import Disk
from assyllm.baselines.swapping import Swapping
from assyllm.zoo.forward import Packed, pooled
from tiny.training import (
    FAMILIES,
    data,
    difference,
    gradients,
    model,
    shaken,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_and_swapped_gradients_are_full_fine_tunings(family: str, tmp_path: Path) -> None:
    full, batch = FullFineTuning(model(family)), data(family).train.take(torch.arange(6))
    weights = shaken(full.start(), 0.02)
    exact = gradients(full.loss, weights, batch)
    assert difference(gradients(Recomputation(model(family)).checkpointed_loss, weights, batch), exact) <= 1e-6
    swapping, disk = Swapping(model(family)), Disk(tmp_path)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    value = swapping.swapped_loss(leaves, batch, torch.ones(6), disk)
    assert disk.written_bytes > 100_000
    swapped = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
    assert all(torch.equal(swapped[name], tensor) for name, tensor in exact.items())
    assert disk.read_bytes >= disk.written_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_rounds_are_full_fine_tunings(family: str) -> None:
    local, full = Local(0.01, 1, 2, "adamw", head_factor=2.0), FullFineTuning(model(family))
    expected, loss = train_client(full.step, full.start(), data(family).train, [0, 1, 2], local, "x")
    for method, allowed in ((Recomputation(model(family)), 1e-6), (Swapping(model(family)), 0.0)):
        weights, other = train_client(method.step, method.start(), data(family).train, [0, 1, 2], local, "x")
        assert other == pytest.approx(loss, rel=1e-6)
        assert difference(weights, expected) <= allowed


def test_sharing_a_trajectory_needs_equal_gradients() -> None:
    plan = Plan(1, 3, 1, Local(0.01, 1, 4, "adamw"))
    full = FullFineTuning(model())
    found = compare(Swapping(model()), full, data(), plan, 0, range(8), clients=1)
    assert (found.gradient, found.weight) == (0.0, 0.0)
    assert found.steps >= 1

    class Wrong(Swapping):
        def step(self, weights: Weights, state: list[Weights], step: int, batch: Packed, local: Local) -> float:
            loss = super().step(weights, state, step, batch, local)
            state[0]["layers.0.mlp.up_proj.weight"].mul_(1.0001)
            return loss

    with pytest.raises(ArtifactError, match="gradients differ"):
        compare(Wrong(model()), full, data(), plan, 0, range(8), clients=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_taken_apart_gives_the_same_states(family: str) -> None:
    base = FullFineTuning(model(family)).base
    parts, batch = Layered(base), data(family).train.take(torch.arange(5))
    names = [name for name, _ in base.named_parameters()]
    assert {parts.stage(name) for name in names} >= set(range(len(parts.layers) + 1))
    with torch.no_grad():
        states, call = parts.enter({}, batch)
        for index in range(len(parts.layers)):
            states = parts.layer(index, {}, states, call)
        assert torch.equal(parts.leave({}, states, batch), pooled(base, None, batch))
