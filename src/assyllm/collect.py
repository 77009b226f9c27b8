"""Raw runs become the result tables. No torch.

``accuracy.csv``: one row per world, task, method, setting and split, with a bootstrap interval over seeds and
questions, those about the same thing drawn together. ``differences.csv``: paired differences between methods,
``ablations.csv``: between settings; ``non_iid.csv``: between clients of unequal and of equal data.
``claims.csv``: :mod:`assyllm.claims`.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from assyllm.artifacts import ArtifactError, write_json
from assyllm.cost.resources import HOURS, RESOURCES, TRADEOFF, places_of, resources_table, tradeoff_table, with_hours
from assyllm.evaluate import paired_bootstrap
from assyllm.params import Evaluate, is_base, setting_values, values_text
from assyllm.results import Metric, Prediction, Run, RunKey, check_columns, read_table, write_table

# what figures draw as the methods' rows: the base setting; zero_shot's best member is picked on the dev split
VERSUS = ("ft_practical", "ft_oracle")
LEADER = "assyllm"  # whom others are held against in the tables of zoos and of unequal clients
# what it is compared with beside VERSUS
AGAINST = ("random_blocks", "one_model_blocks", "all_models_head", "server_head")
PER_ROUND = ("participants", "bytes_up", "bytes_down", "bytes_up_votes", "bytes_up_sums")  # see `condensed`
ROUNDS = ("task", "world", "method", "round", "mean", "low", "high", "runs", "source")
Rows = list[dict[str, str]]
Group = TypeVar("Group")
Again = TypeVar("Again")  # a run among those of a group


class Asked(NamedTuple):
    """A test question, and what it is about: those about one thing are right or wrong together."""

    task: str
    question: str
    about: str


Hits = dict[Asked, int]  # 0 or 1


def told_apart(predictions: Rows) -> Rows:
    """Predictions with questions of one name that are about something else (another generated world's) told apart.

    The first keeps the name; another is called by what it is about too.
    """
    about: dict[tuple[str, str], str] = {}  # by task and question
    return [
        p
        if about.setdefault((p["task"], p["question"]), p["about"]) == p["about"]
        else {**p, "question": f"{p['question']} about {p['about']}"}
        for p in predictions
    ]


@cache  # one object a question: runs are compared key by key
def asked(task: str, question: str, about: str) -> Asked:
    """The question of a prediction; those of real tasks are about themselves."""
    return Asked(task, question, about if about != question else f"{task}/{question}")


def hits_by(
    predictions: Rows, key: Callable[[dict[str, str]], tuple[Group, Again] | None]
) -> dict[Group, dict[Again, Hits]]:
    """Hits by a group of runs and by run, both of which ``key`` says of a prediction; None leaves it out."""
    hits: dict[Group, dict[Again, Hits]] = {}
    for p in predictions:
        if (found := key(p)) is not None:
            group, run = found
            question = asked(p["task"], p["question"], p["about"])
            hits.setdefault(group, {}).setdefault(run, {})[question] = int(p["correct"])
    return hits


def compared(runs: Sequence[Hits], ev: Evaluate) -> tuple[float, float, float]:
    """Mean and interval over runs that answered the same questions (:func:`paired_bootstrap`).

    Raises:
        ArtifactError: they answered others.
    """
    keys = sorted(runs[0])
    if any(run.keys() != runs[0].keys() for run in runs):
        raise ArtifactError(f"{keys[0].task}: runs with other test questions cannot be compared")
    values = [np.array([run[key] for key in keys]) for run in runs]
    return paired_bootstrap(values, [key.about for key in keys], ev.bootstrap_samples, ev.interval)


def less(mine: Hits, theirs: Hits) -> Hits:
    """One run's hits less another's, question by question."""
    return {key: hit - theirs[key] for key, hit in mine.items()}


def paper_values() -> Rows:
    """The paper's published values, as shipped with the package."""
    text = files("assyllm").joinpath("paper_values.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def gather(runs: Iterable[Path], name: str, kind: type) -> Rows:
    """The rows of one table over all runs, in the runs' order.

    Raises:
        ArtifactError: a run lacks the table or has other columns.
    """
    return [row for run in runs for row in check_columns(Path(run) / f"{name}.csv", kind)]


def gather_optional(runs: Iterable[Path], name: str) -> Rows:
    """The rows of a table that only some runs have (assembled models, timings)."""
    return [row for run in runs if (Path(run) / f"{name}.csv").is_file() for row in read_table(run / f"{name}.csv")]


def check_complete(runs: Rows, metrics: Rows) -> None:
    """Every run has a final test accuracy for each of its tasks.

    Raises:
        ArtifactError: naming the run and the task.
    """
    final = {(m["run_id"], m["task"]) for m in metrics if m["metric"] == "accuracy" and m["split"] == "test"}
    for run in runs:
        for task in run["tasks"].split():
            if (run["run_id"], task) not in final:
                raise ArtifactError(f"{run['run_id']}: no test accuracy for {task}")


def answered(rows: Rows, metrics: Rows) -> Rows:
    """Rows of (run, task) pairs that some client took part in.

    A method that no device of the fleet can run, or whose rounds nobody answered, leaves its first weights, which say
    nothing of it: it has no accuracy.
    """
    clients: dict[tuple[str, str, str], float] = defaultdict(float)
    for m in metrics:
        if m["metric"] in ("eligible_clients", "participants"):  # told once; of every round
            clients[m["run_id"], m["task"], m["metric"]] += float(m["value"])
    nobody = {(run_id, task) for (run_id, task, _), number in clients.items() if not number}
    return [row for row in rows if (row["run_id"], row["task"]) not in nobody]


def condensed(metrics: Rows) -> Rows:
    """One row, without a round, for traffic and participants that are the same in every round of a task.

    A fine-tuning method sends the same bytes a hundred times; a row without a round holds for each of them.
    """
    series: dict[tuple, Rows] = defaultdict(list)
    for m in metrics:
        if m["metric"] in PER_ROUND and m["round"] != "":
            series[m["run_id"], m["task"], m["metric"], m["setting"]].append(m)
    constant = {key for key, rows in series.items() if len(rows) > 1 and len({m["value"] for m in rows}) == 1}
    out, told = [], set()
    for m in metrics:
        key = (m["run_id"], m["task"], m["metric"], m["setting"])
        if key not in constant or m["round"] == "":
            out.append(m)
        elif key not in told:
            told.add(key)
            out.append({**m, "round": ""})
    return out


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


@cache
def but(setting: str, *keys: str) -> str:
    """A setting's text without some of its keys: without ``zoo.seed``, runs on several zoos repeat one setting."""
    return values_text({key: value for key, value in setting_values(setting).items() if key not in keys})


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
            if method == versus or not _same_questions(mine, theirs):
                continue
            difference = [less(mine[run], theirs[run]) for run in sorted(mine)]
            mean, low, high = compared(difference, ev)
            rows.append(
                {"task": task, "method": method, "versus": versus, "difference": mean, "low": low,
                 "high": high, "runs": len(difference), "source": "measured"}
            )  # fmt: skip
    return rows


def _same_questions(mine: dict[Again, Hits], theirs: dict[Again, Hits]) -> bool:
    return mine.keys() == theirs.keys() and all(own.keys() == theirs[run].keys() for run, own in mine.items())


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
            right = {s: part for s, own in sorted(mine.items()) if (part := _of_task(own, task))}
            row = dict.fromkeys(ZOOS, "") | {
                "zoo": zoo, "task": task, "method": method, "mean": compared(list(right.values()), ev)[0],
                "runs": len(right), "source": "measured",
            }  # fmt: skip
            if paired:
                found = compared([less(_of_task(first[seed], task), own) for seed, own in right.items()], ev)
                row |= dict(zip(("behind", "low", "high"), found, strict=True))
            rows.append(row)
    return rows


def _of_task(hits: Hits, task: str) -> Hits:
    """The hits of one task, or of all."""
    return {key: hit for key, hit in hits.items() if task in ("all", key.task)}


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
        if len(by_alpha) > 1 and all(_same_questions(mine, by_alpha[max(by_alpha)]) for mine in by_alpha.values())
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
                values = compared([_of_task(own, task) for own in of_runs], ev)
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


def cost_metrics(cost: Rows, world: str) -> list[dict[str, Any]]:
    """Peak memory and participation per method and model as metric rows (modelled)."""
    rows = []
    by_model: dict[tuple[str, str], Rows] = defaultdict(list)
    for row in cost:
        by_model[row["method"], row["model"]].append(row)
    for (method, model), classes in by_model.items():
        share = sum(float(c["share"]) * int(c["participates"]) for c in classes)
        common = {
            "run_id": f"cost-{method}", "method": method, "task": "", "world": world, "seed": 0, "split": "",
            "round": "", "client": "", "block": "", "setting": f'model="{model}"', "source": "modelled",
        }  # fmt: skip
        peak = float(classes[0]["peak_gb"])
        rows.append({**common, "metric": "peak_memory", "value": peak, "unit": "GB"})
        rows.append({**common, "metric": "participation", "value": share, "unit": ""})
    return rows


def summary(accuracy: list[dict]) -> dict[str, dict[str, float]]:
    """Test accuracy by task and method, for ``dvc metrics``."""
    out: dict[str, dict[str, float]] = {}
    for row in accuracy:
        if row["split"] == "test" and row["main"]:
            out.setdefault(row["task"], {})[row["method"]] = round(row["mean"], 4)
    return out


def collect(
    size: str, runs: list[Path], cost_tables: list[Path], p: Any, out: Path, curve_tables: Sequence[Path] = (),
    precision: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Read every run and write all tables into ``out``.

    Args:
        p: sections evaluate, baselines, assembling, partition, zoo, blocks, cost.

    Raises:
        ArtifactError: a run is incomplete or malformed; nothing is written then.
    """
    from assyllm.claims.rows import claims_table
    from assyllm.claims.table import COLUMNS as CLAIMS
    from assyllm.cost.pool_sizes import model_table
    from assyllm.precision import COLUMNS, quantizer_table

    ev = p.evaluate
    run_rows = gather(runs, "run", Run)
    metrics = gather(runs, "metrics", Metric)
    predictions = gather(runs, "predictions", Prediction)
    check_complete(run_rows, metrics)
    stored, metrics = metrics, answered(metrics, metrics)
    predictions = told_apart(answered(predictions, stored))
    worlds = {row["run_id"]: row["world"] for row in run_rows}
    world = run_rows[0]["world"]
    keys = [RunKey.of(row["run_id"]) for row in run_rows]
    models = [{"world": worlds[m["run_id"]], **m} for m in gather_optional(runs, "models")]
    timings = gather_optional(runs, "timings")
    cost = [row for table in cost_tables for row in read_table(table)]
    curves = [row for table in curve_tables for row in read_table(table)]

    accuracy = accuracy_table(predictions, metrics, worlds, ev)
    differences = difference_table(predictions, ev)
    zoos = zoo_table(predictions, ev)
    ablations = ablation_table(predictions, worlds, list(dict.fromkeys(key.setting for key in keys)), ev)
    non_iid = non_iid_table(predictions, run_rows, ev)
    places = places_of(gather_optional(runs, "walk"), models, p)
    resources = resources_table(metrics, cost, places, p)
    rounds = with_hours(round_table(metrics), resources, places)
    tradeoff = tradeoff_table(accuracy, resources, places)
    quantizer = quantizer_table(p.zoo, p.blocks, precision, predictions, world, ev)
    base = sorted({key.repetition for key in keys if key.setting == "base"})
    claims = claims_table(
        accuracy, differences, models, cost, paper_values(), size, resources, quantizer, ablations, base, non_iid
    )

    out = Path(out)
    write_table(out / "metrics.csv", [*condensed(stored), *cost_metrics(cost, world)], Metric.__dataclass_fields__)
    write_table(out / "runs.csv", run_rows)
    write_table(out / "accuracy.csv", accuracy, ACCURACY)
    write_table(out / "differences.csv", differences, DIFFERENCES)
    write_table(out / "zoos.csv", zoos, ZOOS)
    write_table(out / "ablations.csv", ablations, ABLATIONS)
    write_table(out / "non_iid.csv", non_iid, NON_IID)
    write_table(out / "models.csv", models, models[0] if models else ["world", "run_id", "source"])
    write_table(out / "cost.csv", cost)
    write_table(out / "curves.csv", curves, curves[0] if curves else ["method", "stands_for", "varies", "source"])
    write_table(out / "resources.csv", resources, RESOURCES)
    write_table(out / "rounds.csv", rounds, [*ROUNDS, *HOURS])
    write_table(out / "tradeoff.csv", tradeoff, TRADEOFF)
    write_table(out / "paper.csv", paper_values())
    write_table(out / "quantizer.csv", quantizer, COLUMNS)
    write_table(out / "model_sizes.csv", model_table(p.zoo, p.blocks))
    write_table(out / "timings.csv", timings, ["run_id", "what", "value", "unit"])
    write_table(out / "claims.csv", claims, CLAIMS)
    write_json(out / "summary.json", summary(accuracy))
