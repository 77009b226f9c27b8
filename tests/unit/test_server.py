"""Server optimizers, convergence, first weights, rates, and runs that are killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assyllm import params as P
from assyllm.baselines.fedadapter import FedAdapter
from assyllm.baselines.fwdllm import FwdLLM
from assyllm.baselines.local import Local
from assyllm.baselines.lora import Lora
from assyllm.baselines.method import Method, choose
from assyllm.baselines.one_model_head import OneModelHead
from assyllm.baselines.qlora import QLora
from assyllm.baselines.rounds import Plan, run_rounds
from assyllm.baselines.server import Server
from assyllm.checkpoint import Checkpoint
from assyllm.evaluate import converged_round, smoothed
from tiny.training import (
    COMMON,
    FORWARD,
    GROWING,
    LORA,
    data,
    model,
)


def test_the_default_server_takes_the_average() -> None:
    average = {"a": torch.ones(3)}
    assert Server().step({"a": torch.zeros(3)}, average) is average


@pytest.mark.parametrize("name", ["fedavgm", "fedadam"])
def test_server_optimizers_move_towards_the_average_and_keep_moments(name: str) -> None:
    server, weights = Server(name, 0.1), {"a": torch.zeros(3), "b": torch.zeros(2)}
    target = torch.tensor([1.0, -2.0, 3.0])
    for _ in range(200):
        weights = server.step(weights, {"a": weights["a"] + 0.3 * (target - weights["a"]), "b": weights["b"]})
    assert torch.allclose(weights["a"], target, atol=0.3)
    assert "first/a" in server.moments
    grown = server.step(weights, {"a": torch.ones(4)})
    assert torch.equal(grown["a"], torch.ones(4)), "a tensor of another shape is taken as it is"


def test_a_tensor_that_was_gone_starts_with_fresh_moments() -> None:
    """As a trial group's of FedAdapter: it comes back rounds later, from other weights."""
    server, down = Server("fedadam", 0.1), {"trial/a": torch.full((2,), -1.0)}
    for _ in range(20):
        server.step({"trial/a": torch.zeros(2)}, down)
    server.step({"a": torch.zeros(2)}, {"a": torch.ones(2)})
    again = server.step({"trial/a": torch.zeros(2)}, {"trial/a": torch.full((2,), 1e-3)})
    assert torch.allclose(again["trial/a"], torch.full((2,), 0.1), rtol=0.01)


def test_fedadams_first_step_is_its_rate_in_every_weight() -> None:
    moved = Server("fedadam", 0.1).step({"a": torch.zeros(2)}, {"a": torch.tensor([1e-2, -5.0])})["a"]
    assert torch.allclose(moved.abs(), torch.full((2,), 0.1), rtol=0.01)  # (1 - .9) / sqrt(1 - .99) = 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_convergence_is_a_round_of_the_curve_and_ignores_what_follows_a_plateau(values: list[float]) -> None:
    curve = [(5 * (i + 1), value) for i, value in enumerate(values)]
    found = converged_round(curve)
    assert found in {round_ for round_, _ in curve}
    assert converged_round([(r, 0.0) for r in range(1, 4)]) == 1


def test_one_lucky_round_is_not_convergence() -> None:
    values = [0.3, 0.5, 0.9, 0.5, 0.6, 0.7, 0.75, 0.8, 0.8, 0.8, 0.8]
    assert converged_round([(5 * i, v) for i, v in enumerate(values, 1)]) == 45


def test_a_rates_worth_is_its_smoothed_curve_s_best() -> None:
    assert smoothed([0.3, 0.9, 0.3]).tolist() == pytest.approx([0.6, 0.5, 0.6])
    assert smoothed([0.7]).tolist() == [0.7]


@pytest.mark.parametrize(("kind", "tuning"), [(Lora, LORA), (FedAdapter, GROWING)])
def test_first_adapters_are_drawn_by_the_seed(kind: type, tuning: P.Tuning) -> None:
    first, again, other = (kind(model(), tuning).start(seed) for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_a_rate_may_differ_by_model_and_is_what_the_grid_searches() -> None:
    by_model = P.Tuning(**COMMON | {"server_rate": {"llama": 0.1, "opt": 0.2}})
    assert [by_model.rates_of(name) for name in ("llama", "opt")] == [(0.1, 1.0), (0.2, 1.0)]
    assert by_model.at(0.3, 1).rates_of("opt") == (0.3, 1.0)
    clients = P.Tuning(**COMMON | {"server_rate": 1.0}, learning_rate={"llama": 0.1, "opt": 0.2})
    assert [clients.rates_of(name) for name in ("llama", "opt")] == [(1.0, 0.1), (1.0, 0.2)]
    averaged = P.Tuning(**COMMON | {"server_rate": 1.0}, server="fedavg", learning_rate=0.01, optimizer="adamw")
    found = averaged.at(0.3, 2)
    assert (found.learning_rate, found.server_rate, found.local_epochs) == (0.3, 1.0, 2)
    assert found.rounds == averaged.rounds


MADE: dict[str, tuple] = {
    "lora": (Lora, LORA), "qlora": (QLora, LORA), "fedadapter": (FedAdapter, GROWING), "fwdllm": (FwdLLM, FORWARD),
    "one_model_head": (OneModelHead, P.ClosedForm(ridge_grid=[1.0], rounds=4)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MADE))
def test_a_killed_run_of_any_method_resumes_to_identical_results(name: str, tmp_path: Path) -> None:
    def made() -> Method:
        return MADE[name][0](model(), MADE[name][1])

    server = "fedadam" if name == "fwdllm" else "fedavg"
    plan = Plan(6, 3, 1, Local(0.02, 1, 4, "adamw"), 0.0, server, 0.02 if server == "fedadam" else 1.0)
    best, outcome = run_rounds(made(), data(), plan, 0, range(8))

    def kill(row: dict) -> None:
        if row["round"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rounds(made(), data(), plan, 0, range(8), Checkpoint(tmp_path, "t", "key"), kill)
    resumed, again = run_rounds(made(), data(), plan, 0, range(8), Checkpoint(tmp_path, "t", "key"))
    assert again.rounds == outcome.rounds
    assert all(torch.equal(resumed[key], tensor) for key, tensor in best.items())
    subject = made()
    assert choose(subject, best, subject.prepare(data()).test).tolist() == outcome.test_chosen
