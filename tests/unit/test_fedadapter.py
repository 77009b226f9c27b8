"""FedAdapter: adapters that grow by trials over cached activations."""

from __future__ import annotations

import pytest
import torch

from assyllm.artifacts import ArtifactError
from assyllm.baselines import fedadapter
from assyllm.baselines.fedadapter import FedAdapter
from assyllm.baselines.full import FullFineTuning
from assyllm.baselines.local import Local
from assyllm.baselines.method import HEAD
from assyllm.baselines.rounds import Plan, run_rounds
from assyllm.zoo.forward import pooled
from tiny.training import (
    FAMILIES,
    GROWING,
    data,
    model,
    shaken,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_growing_and_caching_change_no_score(family: str) -> None:
    subject = FedAdapter(model(family), GROWING)
    prepared = subject.prepare(data(family))
    small = shaken(subject.start())
    grown = subject._grown(small, 2, 12)
    assert len(grown) == 1 + 3 * 2
    batch = prepared.train.take(torch.tensor([3, 0, 7, 21]))
    with torch.no_grad():
        assert torch.allclose(subject.scores(small, batch), subject.scores(grown, batch), atol=1e-5)
        base = FullFineTuning(model(family)).base
        begun = subject.start() | {HEAD: small[HEAD]}
        assert torch.allclose(subject.scores(begun, batch), pooled(base, None, batch) @ small[HEAD], atol=1e-5)
    assert sorted(subject.cache) == [len(subject.layered.layers) - 2, len(subject.layered.layers) - 1]


def test_adapters_grow_by_trials_up_to_the_depth_that_the_cost_table_counts() -> None:
    subject = FedAdapter(model(), GROWING)
    seen = []
    plan = Plan(12, 5, 2, Local(0.02, 1, 8, "adamw"))
    _, outcome = run_rounds(subject, data(), plan, 0, range(8), report=lambda row: seen.append(row["bytes_up"]))
    assert len(set(seen)) > 2, "adapters grew"
    assert subject.deepest == 3
    assert outcome.rounds[-1]["loss"] < outcome.rounds[0]["loss"]
    weights = subject._grown(subject.start(), 3, subject.width)
    assert subject.after_round(weights, 2) is weights, "nothing is left to try"


def test_adapters_below_the_first_layer_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"baselines\.fedadapter: depth 9 is more than the \d layers"):
        FedAdapter(model(), GROWING.model_copy(update={"depth": 9})).start()


def test_adapters_grow_to_the_rows_that_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedadapter, "WIDEST", 6)
    subject = FedAdapter(model(), GROWING.model_copy(update={"wider": 2000}))
    subject.prepare(data())
    groups = subject._groups(subject.after_round(subject.start(), 2))
    assert {name: next(t.shape[0] for key, t in g.items() if key.endswith("down")) for name, g in groups.items()} == {
        "shallow": 4, "deep": 4, "wide": 6,
    }  # fmt: skip


def test_a_trial_keeps_the_group_of_least_loss() -> None:
    subject = FedAdapter(model(), GROWING)
    subject.prepare(data())
    trial = subject.after_round(subject.start(), 2)
    groups = subject._groups(trial)
    assert list(groups) == ["shallow", "deep", "wide"]
    groups["wide"] = shaken(groups["wide"], 0.3)
    mixed = {f"{name}/{key}": t for name, group in groups.items() for key, t in group.items()}
    losses = {name: subject._dev_loss(group) for name, group in groups.items()}
    kept = subject.after_round(mixed, 3)
    best = groups[min(losses, key=lambda name: losses[name])]
    assert all(torch.equal(kept[name], tensor) for name, tensor in best.items())
