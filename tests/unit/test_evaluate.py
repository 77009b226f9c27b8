"""Accuracies, seen and unseen facts, collapse, bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from assyllm.artifacts import ArtifactError
from assyllm.evaluate import (
    Label,
    accuracy,
    collapsed,
    final_rows,
    majority,
    paired_bootstrap,
    seen_facts,
)
from assyllm.tasks.record import Question


def asked(name: str, answer: int = 0, facts: tuple[str, ...] = ()) -> Question:
    return Question(name, "", "?", ("a", "b"), answer, "", facts)


def test_accuracy_majority_collapse() -> None:
    assert accuracy([0, 1, 1, 0], [0, 1, 0, 0]) == 0.75
    assert accuracy([], []) == 0.0
    with pytest.raises(ArtifactError, match="2 predictions for 1"):
        accuracy([0, 1], [0])
    assert majority([1, 2, 2, 1, 0]) == 1
    assert collapsed([1] * 19 + [0])
    assert not collapsed([1] * 18 + [0] * 2)
    assert not collapsed([])


def test_seen_needs_every_fact() -> None:
    trained = [asked("t", facts=("x", "y")), asked("u", facts=("z",))]
    tests = [asked("1", facts=("x", "z")), asked("2", facts=("x", "w")), asked("3")]
    assert seen_facts(trained, tests) == ["1", "0", ""]


def test_final_rows_split_seen_and_unseen() -> None:
    label = Label(run_id="r", method="m", task="piqa", world="embedded", seed=3, setting="a=1")
    tests = [asked("1", 0, ("x",)), asked("2", 1, ("x",)), asked("3", 1, ("w",))]
    metrics, predictions = final_rows(label, tests, [0, 0, 1], ["1", "1", "0"], 0.5)
    values = {(row.split, row.metric): row.value for row in metrics}
    assert values["test", "accuracy"] == pytest.approx(2 / 3)
    assert values["test_seen", "accuracy"] == 0.5
    assert values["test_unseen", "accuracy"] == 1.0
    assert values["test_unseen", "examples"] == 1
    assert values["dev", "accuracy"] == 0.5
    assert values["test", "collapsed"] == 0
    assert [(p.question, p.seen, p.chosen, p.correct) for p in predictions] == [
        ("1", "1", 0, 1),
        ("2", "1", 0, 0),
        ("3", "0", 1, 1),
    ]
    assert {row.setting for row in metrics} == {"a=1"}


def alone(number: int) -> list[str]:
    return [f"q{i}" for i in range(number)]


def test_bootstrap_covers_and_is_deterministic() -> None:
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(100):
        hits = [(draw.random(300) < 0.7).astype(int)]
        mean, low, high = paired_bootstrap(hits, alone(300), 400, 0.9)
        inside += low <= 0.7 <= high
        assert (mean, low, high) == paired_bootstrap(hits, alone(300), 400, 0.9)
    assert 80 <= inside <= 98
    assert high - low == pytest.approx(2 * 1.645 * np.sqrt(0.21 / 300), rel=0.2)


def test_questions_about_the_same_thing_count_as_one_piece_of_evidence() -> None:
    draw = np.random.default_rng(0)
    inside = {"clustered": 0, "single": 0}
    for _ in range(100):
        hits = [np.repeat(draw.random(75) < 0.7, 4).astype(int)]  # four wordings of each of 75 facts, all alike
        about = [f"fact{i // 4}" for i in range(300)]
        for name, clusters in (("clustered", about), ("single", alone(300))):
            mean, low, high = paired_bootstrap(hits, clusters, 400, 0.9)
            inside[name] += low <= 0.7 <= high
            assert mean == pytest.approx(hits[0].mean())
    assert 80 <= inside["clustered"] <= 98
    assert inside["single"] < 75


def test_pairing_cancels_what_is_hard_for_both_and_runs_widen() -> None:
    draw = np.random.default_rng(1)
    hard = draw.random(500) < 0.5
    better = [np.where(hard, draw.random(500) < 0.1, 1).astype(int) for _ in range(3)]
    worse = [b & (draw.random(500) < 0.95) for b in better]
    less = [b - w for b, w in zip(better, worse, strict=True)]
    mean, low, high = paired_bootstrap(less, alone(500), 1000, 0.95)
    assert low < mean < high
    assert low > 0
    _, alone_low, alone_high = paired_bootstrap(better, alone(500), 1000, 0.95)
    assert high - low < alone_high - alone_low
    constant = [np.full(50, value) for value in (0.0, 1.0)]  # runs that disagree entirely
    _, low, high = paired_bootstrap(constant, alone(50), 1000, 0.95)
    assert (low, high) == (0.0, 1.0)


@pytest.mark.parametrize(("runs", "least"), [(2, 88), (5, 90)])
def test_few_runs_have_their_whole_variance(runs: int, least: int) -> None:
    draw = np.random.default_rng(0)
    about = [f"fact{i // 4}" for i in range(600)]
    inside = 0
    for _ in range(100):
        true = np.repeat(draw.beta(4, 2, 150), 4)
        hits = [(draw.random(600) < (true + draw.normal(0, 0.03)).clip(0, 1)).astype(int) for _ in range(runs)]
        _, low, high = paired_bootstrap(hits, about, 400, 0.95)
        inside += low <= 4 / 6 <= high
    assert least <= inside <= 99


def test_an_interval_that_ends_at_zero_ends_there() -> None:
    third = np.array([1 / 3, -1 / 3] * 30)
    assert paired_bootstrap([third - third], alone(60), 200, 0.95) == (0.0, 0.0, 0.0)


def test_unlike_runs_are_refused() -> None:
    with pytest.raises(ArtifactError, match="unlike numbers"):
        paired_bootstrap([np.ones(3), np.ones(4)], alone(3), 10, 0.9)
