"""How accuracies are taken and compared: one place for every method.

Accuracy, seen against unseen facts, collapse to one answer, intervals by a paired bootstrap over runs and
what the questions are about. No torch: the result tables are made from here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from assyllm import seeding
from assyllm.artifacts import ArtifactError
from assyllm.results import UNITS, Metric, Prediction

if TYPE_CHECKING:
    from assyllm.tasks.record import Question

COLLAPSED_SHARE = 0.95  # a method whose answers are this often the same index has collapsed


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
        """A metric row of this run and task, in the unit that its metric has (:data:`assyllm.results.UNITS`)."""
        common = {name: getattr(self, name) for name in ("run_id", "method", "task", "world", "seed", "setting")}
        unit = UNITS.get(metric, "")
        return Metric(**{**common, "split": split, "metric": metric, "value": value, "unit": unit, **more})


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
        label.row("test", "examples", float(len(test))),
    ]
    for split, flag in (("test_seen", "1"), ("test_unseen", "0")):
        rows = np.array([value == flag for value in seen], dtype=bool)
        if rows.any():
            metrics.append(label.row(split, "accuracy", accuracy(chosen[rows], answer[rows])))
            metrics.append(label.row(split, "examples", float(rows.sum())))
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
            about=question.about,
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
    """The first round whose smoothed accuracy is within half a point of the smoothed curve's maximum.

    Args:
        curve: (round, accuracy in [0, 1]) in ascending order, at least one.
    """
    smooth = smoothed([value for _, value in curve])
    return int(curve[int(np.argmax(smooth >= smooth.max() - 0.005 - 1e-12))][0])


# ----------------------------------------------------------------------------------------------- bootstrap


def paired_bootstrap(
    differences: Sequence[np.ndarray], clusters: Sequence[str], samples: int, interval: float
) -> tuple[float, float, float]:
    """Mean and interval (mean, low, high) of the difference of two methods' accuracies, or of an accuracy.

    Runs are resampled, and clusters of examples rather than examples: questions about the same thing are right or wrong
    together, so that as single ones they would count as more evidence than they are. Both methods are resampled with
    the same runs and examples, so what is hard for both cancels; equal numbers always have equal intervals. Runs drawn
    from n show (n - 1) / n of the variance between runs, so their shares are spread by the root of what is missing.
    With two runs an interval still holds the truth less often than it says (EXPERIMENTS.md).

    Args:
        differences: per run, [examples] of one method's 0/1 less the other's (or 0/1), same examples in each.
        clusters: [examples] names of clusters.
        samples: number of resamples.
        interval: its level, e.g. 0.95.

    Raises:
        ArtifactError: runs with unlike numbers of examples.
    """
    if {len(run) for run in differences} != {len(clusters)}:
        raise ArtifactError("runs with unlike numbers of test questions cannot be compared")
    values = np.stack([np.asarray(run, dtype=np.float64) for run in differences])
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sizes = np.bincount(index).astype(np.float64)
    sums = np.stack([np.bincount(index, weights=run) for run in values])
    rows, columns = _resamples(len(values), len(sizes), samples)
    means = ((rows * (columns @ sums.T)).sum(-1) / (columns @ sizes)).clip(values.min(), values.max())
    low, high = np.quantile(means, [(1 - interval) / 2, (1 + interval) / 2])
    # a sum's last digits would decide whether an interval that ends at 0 is clear of it
    mean, low, high = (round(float(value), 9) + 0.0 for value in (values.mean(), low, high))
    return mean, low, high


@lru_cache(maxsize=16)
def _resamples(runs: int, clusters: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the runs, spread to their whole variance, and draws of the clusters: [samples, runs or clusters]."""
    draw = seeding.rng("bootstrap", runs, clusters)
    rows = draw.multinomial(runs, np.full(runs, 1 / runs), size=samples) / runs
    rows = 1 / runs + (rows - 1 / runs) * (runs / max(1, runs - 1)) ** 0.5
    columns = draw.multinomial(clusters, np.full(clusters, 1 / clusters), size=samples).astype(np.float64)
    return rows, columns
