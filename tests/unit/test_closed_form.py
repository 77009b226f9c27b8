"""Heads in closed form: the sums of all clients are those of all data."""

from __future__ import annotations

import pytest
import torch

from assyllm import params as P
from assyllm.artifacts import ArtifactError
from assyllm.baselines.local import Local
from assyllm.baselines.one_model_head import SUMS, ChoicesOnly, OneModelHead
from assyllm.baselines.rounds import Plan, run_rounds
from tiny import zoo as tiny
from tiny.training import (
    OWNED,
    data,
    model,
)


def test_fewer_clients_than_a_sum_is_formed_of_are_refused() -> None:
    plan = Plan(3, 3, 1, Local(0.0, 1, 1), least=3)
    subject = OneModelHead(model(), P.ClosedForm(ridge_grid=[1.0], rounds=3))
    with pytest.raises(ArtifactError, match=r"^2 client\(s\) can take part, fewer than federated\.least_clients \(3\)"):
        run_rounds(subject, data(), plan, 0, [client for client, items in enumerate(OWNED) if items][:2])


def test_the_head_is_that_of_all_data_at_once() -> None:
    from assyllm.assembly.head import HeadSums, fit_on_dev

    settings_ = P.ClosedForm(ridge_grid=[0.01, 1.0], rounds=3)
    subject, plan = OneModelHead(model(), settings_), Plan(3, 3, 1, Local(0.0, 1, 1))
    _, outcome = run_rounds(subject, data(), plan, 0, range(8))
    assert [row["participants"] for row in outcome.rounds] == [3, 3, 1], "every client with data, once"
    prepared = subject.prepare(data())
    last = subject.start()
    for client, items in enumerate(OWNED):
        if items:
            last, _ = subject.train(last, prepared.train, [(client, items)], plan.local, 0)
    sums = HeadSums(*(last[name] for name in SUMS))
    held = prepared.train.take(torch.tensor([item for items in OWNED for item in items]))
    pooled_at_once = HeadSums.of(held.cached, held.choice_mask, held.answer)  # type: ignore[attr-defined]
    assert torch.allclose(sums.xx, pooled_at_once.xx)
    _, _, accuracy = fit_on_dev(pooled_at_once, [0.01, 1.0], prepared.dev.cached, prepared.dev.choice_mask,
                                   prepared.dev.answer)  # type: ignore[attr-defined]  # fmt: skip
    assert outcome.rounds[-1]["dev"] == pytest.approx(accuracy)
    assert outcome.rounds[0]["bytes_up"] == sums.bytes


def test_the_head_reads_all_layers_as_an_assembled_models_reads_all_blocks() -> None:
    subject = OneModelHead(model(), P.ClosedForm(ridge_grid=[1.0], rounds=1))
    last = OneModelHead(model(), P.ClosedForm(ridge_grid=[1.0], rounds=1, scope="last_layer"))
    layers, width = 4, 32
    assert (subject.size, last.size) == (layers * 2 * width, 2 * width)
    found, least = subject.prepare(data()).train.cached, last.prepare(data()).train.cached  # type: ignore[attr-defined]
    assert torch.equal(found[..., -2 * width :], least)
    assert not torch.equal(found[..., : 2 * width], least)
    narrow = OneModelHead(model(), P.ClosedForm(ridge_grid=[1.0], rounds=1, sketch_dims=5))
    assert narrow.prepare(data()).train.cached.shape[-1] == narrow.size == layers * 5  # type: ignore[attr-defined]


def test_choices_only_sees_no_question() -> None:
    question = tiny.questions("boolq", "train", 1)[0]
    subject = ChoicesOnly(model(), P.ClosedForm(ridge_grid=[1.0], rounds=1))
    assert subject.view(question).stem == ""
    assert subject.view(question).choices == question.choices
