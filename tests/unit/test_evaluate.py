"""Accuracies, seen and unseen facts, collapse, bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from assyllm.artifacts import ArtifactError
from assyllm.evaluate import (
    Label,
    accuracy,
    bootstrap_mean,
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


def test_bootstrap_covers_and_is_deterministic() -> None:
    draw = np.random.default_rng(0)
    inside = 0
    for trial in range(100):
        hits = [(draw.random(300) < 0.7).astype(int)]
        low, high = bootstrap_mean(hits, 400, 0.9, f"trial{trial}")
        inside += low <= 0.7 <= high
        assert (low, high) == bootstrap_mean(hits, 400, 0.9, f"trial{trial}")
    assert 80 <= inside <= 98
    assert high - low == pytest.approx(2 * 1.645 * np.sqrt(0.21 / 300), rel=0.2)


def test_pairing_cancels_what_is_hard_for_both_and_runs_widen() -> None:
    draw = np.random.default_rng(1)
    hard = draw.random(500) < 0.5
    better = [np.where(hard, draw.random(500) < 0.1, 1).astype(int) for _ in range(3)]
    worse = [b & (draw.random(500) < 0.95) for b in better]
    mean, low, high = paired_bootstrap([b - w for b, w in zip(better, worse, strict=True)], 1000, 0.95, "x")
    assert low < mean < high
    assert low > 0
    alone_low, alone_high = bootstrap_mean(better, 1000, 0.95, "y")
    assert high - low < alone_high - alone_low
    constant = [np.full(50, value) for value in (0.0, 1.0)]  # runs that disagree entirely
    _, low, high = paired_bootstrap(constant, 1000, 0.95, "z")
    assert (low, high) == (0.0, 1.0)


def test_unlike_runs_are_refused() -> None:
    with pytest.raises(ArtifactError, match="unlike numbers"):
        bootstrap_mean([np.ones(3), np.ones(4)], 10, 0.9, "x")
