"""One method under several settings: ``zoos.csv``, ``ablations.csv``, ``non_iid.csv``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product

from assyllm.collect.hits import LEADER, Hits, Rows, but, compared, hits_by, less, of_task, same_questions
from assyllm.params import Evaluate
from assyllm.results import RunKey

ZOOS = ("zoo", "task", "method", "mean", "behind", "low", "high", "runs", "source")


def zoo_table(predictions: Rows, ev: Evaluate) -> list[dict]:
    """Every method on every differently pre-trained zoo, on the base setting, and how far it is behind assyllm.

    A zoo of another generated world (``world.seed``), asked about that, is ``<zoo> of world <seed>``. ``mean`` is the
    test accuracy over seeds, ``behind`` assyllm's less this one's with its paired interval; empty where one of
    the two lacks a run. The task ``all`` is every question, so the mean over tasks where these have as many.
    """

    def on_zoo(p: dict[str, str]) -> tuple[tuple[str, str], int] | None:
        world = re.fullmatch(r"(?:world\.seed=(\d+))?", but(p["setting"], "zoo.seed"))
        if world is None:
            return None
        run = RunKey.of(p["run_id"])
        return (f"{run.zoo} of world {world[1]}" if world[1] else str(run.zoo), p["method"]), run.seed

    hits = hits_by(predictions, on_zoo)
    rows = []
    for zoo, method in sorted(hits):
        mine, first = hits[zoo, method], hits.get((zoo, LEADER), {})
        paired = method != LEADER and all(set(first.get(seed, ())) == set(own) for seed, own in mine.items())
        tasks = sorted({task for own in mine.values() for task, *_ in own})
        alike = len({frozenset(own) for own in mine.values()}) == 1  # else some seed has no answer to a task
        for task in ["all", *tasks] if alike else tasks:
            right = {s: part for s, own in sorted(mine.items()) if (part := of_task(own, task))}
            row = dict.fromkeys(ZOOS, "") | {
                "zoo": zoo, "task": task, "method": method, "mean": compared(list(right.values()), ev)[0],
                "runs": len(right), "source": "measured",
            }  # fmt: skip
            if paired:
                found = compared([less(of_task(first[seed], task), own) for seed, own in right.items()], ev)
                row |= dict(zip(("behind", "low", "high"), found, strict=True))
            rows.append(row)
    return rows


ABLATIONS = (
    "setting", "changed", "method", "task", "world", "mean", "low", "high", "difference", "difference_low",
    "difference_high", "runs", "source",
)  # fmt: skip


def ablation_table(predictions: Rows, worlds: dict[str, str], settings: Sequence[str], ev: Evaluate) -> list[dict]:
    """Accuracy of every method that ran under several settings, and its paired difference to the base setting.

    Args:
        settings: names, in the order of the table.
    """
    predictions = [p for p in predictions if p["method"] != "zero_shot"]  # its settings are members of the zoo

    def under(p: dict[str, str]) -> tuple[tuple[str, str, str], str]:
        run = RunKey.of(p["run_id"])
        return (run.setting, run.method, p["task"]), run.repetition

    hits = hits_by(predictions, under)
    of_setting = {
        RunKey.of(p["run_id"]).setting: {"changed": but(p["setting"], "zoo.seed"), "world": worlds[p["run_id"]]}
        for p in predictions
    }
    varied = {(method, task) for setting, method, task in hits if setting != "base"}
    rows = []
    for setting, method, task in sorted(hits, key=lambda k: (k[1:], settings.index(k[0]))):
        if (method, task) not in varied:
            continue
        mine, base = hits[setting, method, task], hits.get(("base", method, task), {})
        shared = sorted(run for run in set(mine) & set(base) if set(mine[run]) == set(base[run]))
        right = [mine[run] for run in sorted(mine)]
        mean, low, high = compared(right, ev)
        row = dict.fromkeys(ABLATIONS, "") | {
            "setting": setting, **of_setting[setting], "method": method, "task": task,
            "mean": mean, "low": low, "high": high, "runs": len(right), "source": "measured",
        }  # fmt: skip
        if shared and setting != "base":
            found = compared([less(mine[run], base[run]) for run in shared], ev)
            row |= dict(zip(("difference", "difference_low", "difference_high"), found, strict=True))
        rows.append(row)
    return rows


NON_IID = (
    "task", "world", "method", "changed", "alpha", "mean", "low", "high", "drop", "drop_low", "drop_high", "more",
    "more_low", "more_high", "runs", "source",
)  # fmt: skip


def non_iid_table(predictions: Rows, runs: Rows, ev: Evaluate) -> list[dict]:
    """Accuracy of every method that ran under several values of ``partition.alpha``, all else alike.

    ``changed`` is what else its settings change, "" where nothing. ``drop`` is what it has where clients are most alike
    (the greatest alpha) less what it has here, ``more`` its drop less assyllm's; intervals are paired. The task
    ``all`` is every question. A method whose values of alpha were not run with the same seeds is left out.
    """
    of_run = {run["run_id"]: (but(run["setting"], "zoo.seed", "partition.alpha"), float(run["alpha"])) for run in runs}
    tasks = ["all", *sorted({p["task"] for p in predictions})]
    predictions = [p for p in predictions if p["method"] != "zero_shot"]

    def under(p: dict[str, str]) -> tuple[tuple[str, str, float], str]:
        return (p["method"], *of_run[p["run_id"]]), RunKey.of(p["run_id"]).repetition

    hits: dict[tuple[str, str], dict[float, dict[str, Hits]]] = defaultdict(dict)
    for (method, changed, alpha), by_run in hits_by(predictions, under).items():
        hits[method, changed][alpha] = by_run
    swept = {
        name: by_alpha
        for name, by_alpha in sorted(hits.items())
        if len(by_alpha) > 1 and all(same_questions(mine, by_alpha[max(by_alpha)]) for mine in by_alpha.values())
    }
    lost = {
        name: {
            alpha: [less(by_alpha[max(by_alpha)][run], by_alpha[alpha][run]) for run in sorted(by_alpha[alpha])]
            for alpha in by_alpha
        }
        for name, by_alpha in swept.items()
    }
    rows = []
    for name, by_alpha in swept.items():
        answered = [{key.task for key in own} for by_run in by_alpha.values() for own in by_run.values()]
        everywhere = set.intersection(*answered)  # where nobody answered in some run, no task and no mean
        shown = [task for task in tasks if task in everywhere or (task == "all" and everywhere >= set(tasks[1:]))]
        for task, alpha in product(shown, sorted(by_alpha)):

            def found(kind: str, of_runs: Iterable[Hits], task: str = task) -> dict[str, float]:
                values = compared([of_task(own, task) for own in of_runs], ev)
                return dict(zip((kind, f"{kind}_low", f"{kind}_high"), values, strict=True))

            accuracy = found("mean", [by_alpha[alpha][run] for run in sorted(by_alpha[alpha])])
            row = dict.fromkeys(NON_IID, "") | {
                "task": task, "world": runs[0]["world"], "method": name[0], "changed": name[1], "alpha": alpha,
                "mean": accuracy["mean"], "low": accuracy["mean_low"], "high": accuracy["mean_high"],
                "runs": len(by_alpha[alpha]), "source": "measured",
            }  # fmt: skip
            if alpha < max(by_alpha):
                row |= found("drop", lost[name][alpha])
                theirs = lost.get((LEADER, ""), {}).get(alpha, [])
                if name != (LEADER, "") and [own.keys() for own in theirs] == [own.keys() for own in lost[name][alpha]]:
                    row |= found("more", map(less, lost[name][alpha], theirs))
            rows.append(row)
    return rows
