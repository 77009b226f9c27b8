"""How accuracies are taken and compared: one place for every method.

Accuracy, seen against unseen facts, collapse to one answer, intervals by a paired bootstrap over runs and
examples. No torch: the result tables are made from here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from assyllm import seeding
from assyllm.artifacts import ArtifactError
from assyllm.results import Metric, Prediction

COLLAPSED_SHARE = 0.95  # a method whose answers are this often the same index has collapsed


class Question(Protocol):
    """What is needed of a ``tasks.record.Question``."""

    @property
    def id(self) -> str:
        """Its name in its split."""

    @property
    def answer(self) -> int:
        """Index of the right choice."""

    @property
    def facts(self) -> tuple[str, ...]:
        """The facts it rests on."""


# ---------------------------------------------------------------------------------------------- accuracies


def accuracy(chosen: Sequence[int] | np.ndarray, answer: Sequence[int] | np.ndarray) -> float:
    """Share of questions answered rightly, in [0, 1]; 0 where there is no question."""
    chosen, answer = np.asarray(chosen), np.asarray(answer)
    if chosen.shape != answer.shape:
        raise ArtifactError(f"{chosen.shape[0]} predictions for {answer.shape[0]} questions")
    return float((chosen == answer).mean()) if len(answer) else 0.0


def majority(answers: Iterable[int]) -> int:
    """The most frequent answer index (the lowest one at a tie)."""
    counts = np.bincount(np.fromiter(answers, dtype=np.int64), minlength=1)
    return int(counts.argmax())


def collapsed(chosen: Sequence[int] | np.ndarray) -> bool:
    """Whether a method gives (nearly) one answer whatever the question: no better than a majority class."""
    chosen = np.asarray(chosen)
    return bool(len(chosen)) and _top_share(chosen) >= COLLAPSED_SHARE


def _top_share(values: np.ndarray) -> float:
    return float(np.bincount(values).max() / len(values))


def seen_facts(trained: Iterable[Question], questions: Iterable[Question]) -> list[str]:
    """Per question "1" if all its facts occur in ``trained``, "0" if not, "" where it names no facts."""
    known = {fact for question in trained for fact in question.facts}
    return [str(int(known.issuperset(q.facts))) if q.facts else "" for q in questions]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What the rows of one run and task have in common (see results.Metric)."""

    run_id: str
    method: str
    task: str
    world: str
    seed: int
    setting: str = ""

    def row(self, split: str, metric: str, value: float, **more: Any) -> Metric:
        """A metric row of this run and task."""
        common = {name: getattr(self, name) for name in ("run_id", "method", "task", "world", "seed", "setting")}
        return Metric(**common, split=split, metric=metric, value=value, **more)


def final_rows(
    label: Label,
    test: Sequence[Question],
    chosen: Sequence[int] | np.ndarray,
    seen: Sequence[str],
    dev_accuracy: float | None = None,
) -> tuple[list[Metric], list[Prediction]]:
    """The final rows of a method on one task.

    Metrics ``accuracy``, ``collapsed`` (0/1) and ``examples`` on test, ``accuracy`` and ``examples`` on
    test_seen and test_unseen where facts exist, ``accuracy`` on dev where given; a prediction per question.

    Args:
        chosen: [N] predicted choices of ``test``.
        seen: [N] from :func:`seen_facts`.
    """
    answer = np.array([q.answer for q in test], dtype=np.int64)
    chosen = np.asarray(chosen, dtype=np.int64)
    metrics = [
        label.row("test", "accuracy", accuracy(chosen, answer)),
        label.row("test", "collapsed", float(collapsed(chosen))),
        label.row("test", "examples", float(len(test)), unit="questions"),
    ]
    for split, flag in (("test_seen", "1"), ("test_unseen", "0")):
        rows = np.array([value == flag for value in seen], dtype=bool)
        if rows.any():
            metrics.append(label.row(split, "accuracy", accuracy(chosen[rows], answer[rows])))
            metrics.append(label.row(split, "examples", float(rows.sum()), unit="questions"))
    if dev_accuracy is not None:
        metrics.append(label.row("dev", "accuracy", dev_accuracy))
    predictions = [
        Prediction(
            run_id=label.run_id,
            method=label.method,
            task=label.task,
            seed=label.seed,
            setting=label.setting,
            question=question.id,
            seen=flag,
            chosen=int(choice),
            correct=int(choice == question.answer),
        )
        for question, choice, flag in zip(test, chosen, seen, strict=True)
    ]
    return metrics, predictions


def smoothed(values: Sequence[float]) -> np.ndarray:
    """The mean of every point and its two neighbours (fewer at the ends), so that one lucky round does not count."""
    points = np.array(values, dtype=np.float64)
    return np.array([points[max(0, i - 1) : i + 2].mean() for i in range(len(points))])


def converged_round(curve: Sequence[tuple[int, float]]) -> int:
    """The first round whose accuracy is within half a point of the smoothed curve's maximum.

    Args:
        curve: (round, accuracy in [0, 1]) in ascending order, at least one.
    """
    smooth = smoothed([value for _, value in curve])
    return int(curve[int(np.argmax(smooth >= smooth.max() - 0.005 - 1e-12))][0])


# ----------------------------------------------------------------------------------------------- bootstrap


def bootstrap_mean(hits: Sequence[np.ndarray], samples: int, interval: float, name: str) -> tuple[float, float]:
    """Interval (low, high) of a mean accuracy, resampling runs and examples.

    Args:
        hits: one array [examples] of 0/1 a run, the same examples in the same order in each.
        samples: number of resamples.
        interval: its level, e.g. 0.95.
        name: of the random draw.

    Raises:
        ArtifactError: runs with unlike numbers of examples.
    """
    _, low, high = paired_bootstrap(hits, samples, interval, name)
    return low, high


def paired_bootstrap(
    differences: Sequence[np.ndarray], samples: int, interval: float, name: str
) -> tuple[float, float, float]:
    """Mean and interval (mean, low, high) of the difference of two methods' accuracies.

    Both methods are resampled with the same runs and examples, so what is hard for both cancels.

    Args:
        differences: per run, [examples] of one method's 0/1 less the other's, same examples in each.
        samples: number of resamples.
        interval: its level, e.g. 0.95.
        name: of the random draw.

    Raises:
        ArtifactError: runs with unlike numbers of examples.
    """
    if len({len(run) for run in differences}) != 1:
        raise ArtifactError(f"{name}: runs with unlike numbers of test questions cannot be compared")
    values = np.stack([np.asarray(run, dtype=np.float64) for run in differences])
    runs, examples = values.shape
    draw = seeding.rng("bootstrap", name)
    means = np.empty(samples)
    for start in range(0, samples, 250):
        size = min(250, samples - start)
        rows = draw.multinomial(runs, np.full(runs, 1 / runs), size=size) / runs
        columns = draw.multinomial(examples, np.full(examples, 1 / examples), size=size) / examples
        means[start : start + size] = ((rows @ values) * columns).sum(-1)
    low, high = np.quantile(means, [(1 - interval) / 2, (1 + interval) / 2])
    return float(values.mean()), float(low), float(high)
