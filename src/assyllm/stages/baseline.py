"""Stage ``baseline``: one method without block assembling, on all tasks."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assyllm import params as P
from assyllm.artifacts import manifest_sha, output_folder, sha256_file, sha256_text, verify_folder
from assyllm.results import Metric, Prediction, Run, write_rows, write_table

if TYPE_CHECKING:
    from assyllm.evaluate import Label

SECTIONS = ("zoo", "tasks", "partition", "federated", "baselines", "fleet")
CODE = (
    "baselines", "federated/cohort.py", "zoo/encoding.py", "zoo/forward.py", "zoo/likelihood.py", "zoo/load.py",
    "tasks/record.py", "tasks/partition.py", "evaluate.py", "results.py", "artifacts.py", "checkpoint.py", "seeding.py",
)  # fmt: skip
Rows = tuple[list[Metric], list[Prediction], list[dict[str, Any]]]


def run(
    params: str,
    code_sha: str,
    method: str,
    setting_name: str,
    setting: str,
    zoo: Path,
    zoo_seed: int,
    tasks: Path,
    partition: Path,
    cost: Path,
    seed: int,
    checkpoint: Path,
    out: Path,
) -> None:
    """Run ``method`` on every task and write its run folder."""
    import torch

    from assyllm.baselines.job import read_task
    from assyllm.evaluate import Label

    torch.set_num_threads(1)
    p = P.parse_sections(params, SECTIONS)
    for folder in (tasks, partition):
        verify_folder(folder)
    run_id = f"{setting_name}-{method}-zoo{zoo_seed}-seed{seed}"
    world = "embedded" if p.tasks.source == "world" else "real"
    files = {task: read_task(tasks, partition, task, p.partition.clients) for task in p.tasks.names}
    labels = {
        task: Label(run_id=run_id, method=method, task=task, world=world, seed=seed, setting=setting) for task in files
    }
    models, limit = p.baselines.model, "none"
    if method == "majority":
        models, rows = "", _majority(files, labels)
    elif method == "zero_shot":
        models, rows = " ".join(sorted(p.zoo.models)), _zero_shot(p, zoo, files, labels)
    else:
        inputs = [manifest_sha(folder) for folder in (tasks, partition, zoo / models)]
        key = sha256_text("\n".join([params, code_sha, method, run_id, setting, sha256_file(cost), *inputs]))
        limit, rows = _federated(p, method, zoo / models, files, labels, cost, seed, checkpoint, key)
    metrics, predictions, timings = rows
    record = Run(
        run_id=run_id,
        method=method,
        tasks=" ".join(files),
        world=world,
        models=models,
        budget=limit,
        alpha=p.partition.alpha,
        seed=seed,
        params_sha=P.params_sha(params),
        code_sha=code_sha,
        setting=setting,
        device="cpu",
    )
    with output_folder(out, unlisted=("timings.csv",)) as folder:
        write_rows(folder / "run.csv", Run, [record])
        write_rows(folder / "metrics.csv", Metric, metrics)
        write_rows(folder / "predictions.csv", Prediction, predictions)
        write_table(folder / "timings.csv", timings, columns=("run_id", "what", "value", "unit"))
    shutil.rmtree(checkpoint, ignore_errors=True)


def _majority(files: dict[str, Any], labels: dict[str, Label]) -> Rows:
    from assyllm.baselines import majority
    from assyllm.evaluate import accuracy, final_rows, seen_facts

    metrics, predictions = [], []
    for task, task_files in files.items():
        splits = task_files.splits
        dev = majority.choose(splits["train"], splits["dev"])
        more = final_rows(
            labels[task],
            splits["test"],
            majority.choose(splits["train"], splits["test"]),
            seen_facts(splits["train"], splits["test"]),
            accuracy(dev, [q.answer for q in splits["dev"]]),
        )
        metrics += more[0]
        predictions += more[1]
    return metrics, predictions, []


def with_model(setting: str, model: str) -> str:
    """A setting's canonical text with ``model="<name>"`` added in its place."""
    pairs = [pair for pair in re.split(r" (?=[\w.]+=)", setting) if pair]
    return " ".join(sorted([*pairs, f'model="{model}"']))


def _zero_shot(p: Any, zoo: Path, files: dict[str, Any], labels: dict[str, Label]) -> Rows:
    from dataclasses import replace

    from assyllm.baselines import zero_shot
    from assyllm.baselines.job import open_model
    from assyllm.evaluate import accuracy, final_rows, seen_facts

    metrics, predictions = [], []
    for name in sorted(p.zoo.models):
        model, tokenizer = open_model(zoo / name)
        for task, task_files in files.items():
            splits = task_files.splits
            label = replace(labels[task], setting=with_model(labels[task].setting, name))
            length = p.tasks.max_tokens[task]
            answers = zero_shot.answer(model, tokenizer, splits["dev"], splits["test"], length)
            on_dev = accuracy(answers.dev, [q.answer for q in splits["dev"]])
            seen = seen_facts(splits["train"], splits["test"])
            more = final_rows(label, splits["test"], answers.test, seen, on_dev)
            metrics += more[0]
            predictions += more[1]
            right = [q.answer for q in splits["test"]]
            metrics += [label.row("test", kind, accuracy(c, right)) for kind, c in answers.both.items()]
    return metrics, predictions, []


def _federated(
    p: Any,
    method: str,
    folder: Path,
    files: dict[str, Any],
    labels: dict[str, Label],
    cost: Path,
    seed: int,
    checkpoint: Path,
    key: str,
) -> tuple[str, Rows]:
    from assyllm.baselines.job import budget, eligible_clients, encode_task, open_model, plan
    from assyllm.baselines.registry import METHODS
    from assyllm.baselines.rounds import run_rounds
    from assyllm.checkpoint import Checkpoint
    from assyllm.evaluate import final_rows, seen_facts
    from assyllm.federated.cohort import device_memory

    model, tokenizer = open_model(folder)
    name = p.baselines.model
    eligible = eligible_clients(cost, name, device_memory(seed, p.fleet, p.partition.clients))
    metrics, predictions, timings = [], [], []
    for task, task_files in files.items():
        label, splits = labels[task], task_files.splits
        subject = METHODS[method](model)
        data, shortened = encode_task(task_files, tokenizer, subject.causal, p.tasks.max_tokens[task])
        tuning = getattr(p.baselines, method)[task]
        _, outcome = run_rounds(
            subject,
            data,
            plan(tuning, p.federated, p.baselines.evaluate_every),
            seed,
            eligible,
            Checkpoint(checkpoint, task, key),
            report=partial(_say, task),
        )
        seen = seen_facts(splits["train"], splits["test"])
        more = final_rows(label, splits["test"], outcome.test_chosen, seen, outcome.best_dev)
        metrics += [*_round_rows(label, outcome.rounds), *more[0]]
        metrics.append(label.row("", "best_round", float(outcome.best_round)))
        metrics.append(label.row("", "eligible_clients", float(len(eligible))))
        metrics.append(label.row("", "shortened_questions", float(shortened)))
        predictions += more[1]
        timings += _timings(label.run_id, task, outcome)
    return budget(cost, name), (metrics, predictions, timings)


def _say(task: str, row: dict[str, Any]) -> None:
    if "dev" in row:
        print(f"{task} round {row['round']}: dev {row['dev']:.3f}, test {row['test']:.3f}", flush=True)


def _round_rows(label: Label, rounds: list[dict[str, Any]]) -> list[Metric]:
    rows = []
    for entry in rounds:
        number = entry["round"]
        rows += [
            label.row(split, "accuracy", entry[split], round=number) for split in ("dev", "test") if split in entry
        ]
        if "loss" in entry:
            rows.append(label.row("train", "loss", entry["loss"], round=number, unit="nats"))
        rows.append(label.row("", "participants", float(entry["participants"]), round=number, unit="clients"))
        for name in ("bytes_up", "bytes_down"):
            rows.append(label.row("", name, float(entry[name]), round=number, unit="bytes"))
    return rows


def _timings(run_id: str, task: str, outcome: Any) -> list[dict[str, Any]]:
    answered = sum(entry["participants"] for entry in outcome.rounds)
    total = float(sum(outcome.seconds))
    rows = [{"run_id": run_id, "what": f"{task} training", "value": total, "unit": "s"}]
    if answered:
        rows.append({"run_id": run_id, "what": f"{task} client round", "value": total / answered, "unit": "s"})
    return rows
