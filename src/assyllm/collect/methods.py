"""Methods beside one another: ``accuracy.csv``, ``rounds.csv``, ``differences.csv``."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np

from assyllm.collect.hits import LEADER, Rows, but, compared, hits_by, less, same_questions
from assyllm.params import Evaluate, is_base
from assyllm.results import RunKey

# what figures draw as the methods' rows: the base setting; zero_shot's best member is picked on the dev split
VERSUS = ("ft_practical", "ft_oracle")
# what it is compared with beside VERSUS
AGAINST = ("random_blocks", "one_model_blocks", "all_models_head", "server_head")
ACCURACY = (
    "world", "task", "method", "setting", "split", "mean", "low", "high", "runs", "examples", "collapsed", "main",
    "source",
)  # fmt: skip


def accuracy_table(predictions: Rows, metrics: Rows, worlds: dict[str, str], ev: Evaluate) -> list[dict]:
    """Mean accuracy per task, method, setting and split, with its bootstrap interval.

    ``collapsed`` flags a method that gave nearly one answer only in some run; ``main`` marks the rows that
    stand for a method in figures: the base setting, and for zero-shot the pool member best on dev.
    """
    best = best_zero_shot(metrics)
    fallen = {(m["run_id"], m["task"]) for m in metrics if m["metric"] == "collapsed" and float(m["value"])}

    def of(p: dict[str, str], split: str) -> tuple[tuple[str, ...], str]:
        return (worlds[p["run_id"]], p["task"], p["method"], but(p["setting"], "zoo.seed"), split), p["run_id"]

    groups = hits_by(predictions, lambda p: of(p, "test"))
    with_facts = [p for p in predictions if p["seen"]]
    groups |= hits_by(with_facts, lambda p: of(p, "test_seen" if p["seen"] == "1" else "test_unseen"))
    rows = []
    for key, by_run in sorted(groups.items()):
        world, task, method, setting, split = key
        hits = list(by_run.values())
        mean, low, high = compared(hits, ev)
        rows.append(
            {
                "world": world, "task": task, "method": method, "setting": setting, "split": split,
                "mean": mean, "low": low, "high": high,
                "runs": len(hits), "examples": len(hits[0]),
                "collapsed": int(any((run, task) in fallen for run in by_run)),
                "main": int(setting == "" or (method == "zero_shot" and (task, setting) in best)), "source": "measured",
            }
        )  # fmt: skip
    return rows


def best_zero_shot(metrics: Rows) -> set[tuple[str, str]]:
    """Per task the zero-shot setting (pool member) with the best mean accuracy on the development split."""
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for m in metrics:
        setting, row = but(m["setting"], "zoo.seed"), (m["method"], m["metric"], m["split"], m["round"])
        if row == ("zero_shot", "accuracy", "dev", "") and re.fullmatch(r'model="[^"]*"', setting):
            scores[m["task"], setting].append(float(m["value"]))
    best = set()
    for task in sorted({task for task, _ in scores}):
        mine = {s: float(np.mean(v)) for (t, s), v in scores.items() if t == task}
        best.add((task, max(sorted(mine), key=lambda s: mine[s])))
    return best


ROUNDS = ("task", "world", "method", "round", "mean", "low", "high", "runs", "source")


def round_table(metrics: Rows) -> list[dict]:
    """Test accuracy by round in the base setting: mean, least and most over runs.

    From the round on in which every run has been judged; a run that is over keeps its last accuracy.
    """
    courses: dict[tuple[str, str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for m in metrics:
        judged = m["metric"] == "accuracy" and m["split"] == "test" and m["round"] != ""
        if judged and is_base(m["setting"]):
            courses[m["task"], m["world"], m["method"]][m["run_id"]][int(m["round"])] = float(m["value"])
    rows = []
    for key, runs in sorted(courses.items()):
        begun = max(min(course) for course in runs.values())
        for number in sorted({n for course in runs.values() for n in course if n >= begun}):
            values = [course[max(n for n in course if n <= number)] for course in runs.values()]
            rows.append((*key, number, float(np.mean(values)), min(values), max(values), len(values), "measured"))
    return [dict(zip(ROUNDS, row, strict=True)) for row in rows]


DIFFERENCES = ("task", "method", "versus", "difference", "low", "high", "runs", "source")


def difference_table(predictions: Rows, ev: Evaluate) -> list[dict]:
    """Paired differences of every method to FT-practical and FT-oracle, per task, on the base setting.

    Where the two were also run on another model (``baselines.model``), to them too: ``ft_oracle_vicuna``. Those of
    ``assyllm`` to its :data:`AGAINST` as well.
    """

    def named(p: dict[str, str]) -> tuple[tuple[str, str], str] | None:
        setting, name = but(p["setting"], "zoo.seed"), p["method"]
        if name in VERSUS and (other := re.fullmatch(r'baselines\.model="([\w-]+)"', setting)):
            setting, name = "", f"{name}_{other[1]}"
        return ((p["task"], name), RunKey.of(p["run_id"]).repetition) if setting == "" else None

    hits = hits_by(predictions, named)
    others = {name for _, name in hits} - {p["method"] for p in predictions}
    rows = []
    for (task, method), mine in sorted(hits.items()):
        controls = AGAINST if method == LEADER else ()
        for versus in () if method in others else (*VERSUS, *sorted(others), *controls):
            theirs = hits.get((task, versus), {})
            if method == versus or not same_questions(mine, theirs):
                continue
            difference = [less(mine[run], theirs[run]) for run in sorted(mine)]
            mean, low, high = compared(difference, ev)
            rows.append(
                {"task": task, "method": method, "versus": versus, "difference": mean, "low": low,
                 "high": high, "runs": len(difference), "source": "measured"}
            )  # fmt: skip
    return rows


def summary(accuracy: list[dict]) -> dict[str, dict[str, float]]:
    """Test accuracy by task and method, for ``dvc metrics``."""
    out: dict[str, dict[str, float]] = {}
    for row in accuracy:
        if row["split"] == "test" and row["main"]:
            out.setdefault(row["task"], {})[row["method"]] = round(row["mean"], 4)
    return out
