"""Stage ``baseline``: one method without block assembling, on all tasks."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assyllm import params as P
from assyllm.artifacts import ArtifactError, manifest_sha, output_folder, sha256_file, sha256_text, verify_folder
from assyllm.results import Metric, Prediction, Run, check_columns, write_rows, write_table

if TYPE_CHECKING:
    from assyllm.evaluate import Label

SECTIONS = ("zoo", "tasks", "partition", "federated", "baselines", "frozen_base", "fleet")
CODE = ("params/names.py", "params/baselines.py")  # beside what is imported (study.code_sha)
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
    shared: Path | None = None,
) -> None:
    """Run ``method`` on every task and write its run folder.

    ``shared`` is the run of the method that ``params.SHARES`` names: it is taken over where the same clients take part.
    """
    import torch

    from assyllm.baselines.job import read_task
    from assyllm.evaluate import Label

    torch.set_num_threads(1)
    p = P.parse_sections(params, SECTIONS)
    for folder in (tasks, partition):
        verify_folder(folder)
    run_id = f"{setting_name}-{method}-zoo{zoo_seed}-seed{seed}"
    world = "embedded" if p.tasks.source == "world" else "real"
    files = {task: read_task(tasks, partition, task, p.partition) for task in p.tasks.names}
    labels = {
        task: Label(run_id=run_id, method=method, task=task, world=world, seed=seed, setting=setting) for task in files
    }
    models, limit, same_as = p.baselines.model, "none", ""
    if method == "majority":
        models, rows = "", _majority(files, labels)
    elif method == "zero_shot":
        models, rows = " ".join(sorted(p.zoo.models)), _zero_shot(p, zoo, files, labels)
    else:
        names = sorted(p.zoo.models) if method in P.ALL_MODELS else [models]
        models = " ".join(names)
        inputs = [manifest_sha(folder) for folder in (tasks, partition, *(zoo / name for name in names))]
        key = sha256_text("\n".join([params, code_sha, method, run_id, setting, sha256_file(cost), *inputs]))
        job = Job(p, method, zoo, names, files, labels, cost, seed, checkpoint, key)
        if method == "server_head":
            rows = job.alone()
        else:
            limit, same_as, rows = job.shared(shared) if shared else job.run()
    metrics, predictions, timings = rows
    record = Run(
        run_id=run_id,
        method=method,
        tasks=" ".join(files),
        world=world,
        models=models,
        weights_sha=_weights_sha(zoo, models.split()),
        budget=limit,
        alpha=p.partition.alpha,
        seed=seed,
        params_sha=P.params_sha(params),
        code_sha=code_sha,
        setting=setting,
        device="cpu",
        shares_trajectory_of=same_as,
    )
    with output_folder(out, unlisted=("timings.csv",)) as folder:
        write_rows(folder / "run.csv", Run, [record])
        write_rows(folder / "metrics.csv", Metric, metrics)
        write_rows(folder / "predictions.csv", Prediction, predictions)
        write_table(folder / "timings.csv", timings, columns=("run_id", "what", "value", "unit"))
    shutil.rmtree(checkpoint, ignore_errors=True)


def _weights_sha(zoo: Path, models: list[str]) -> str:
    return sha256_text(" ".join(manifest_sha(zoo / name) for name in models))[:12] if models else ""


def _majority(files: dict[str, Any], labels: dict[str, Label]) -> Rows:
    from assyllm.baselines import majority
    from assyllm.evaluate import accuracy, final_rows, seen_facts

    metrics, predictions = [], []
    for task, task_files in files.items():
        splits, held = task_files.splits, task_files.held
        dev = majority.choose(held, splits["dev"])
        more = final_rows(
            labels[task],
            splits["test"],
            majority.choose(held, splits["test"]),
            seen_facts(held, splits["test"]),
            accuracy(dev, [q.answer for q in splits["dev"]]),
        )
        metrics += more[0]
        predictions += more[1]
    return metrics, predictions, []


def with_model(setting: str, model: str) -> str:
    """A setting's canonical text with ``model="<name>"`` added in its place."""
    return P.values_text(P.setting_values(setting) | {"model": model})


def _zero_shot(p: Any, zoo: Path, files: dict[str, Any], labels: dict[str, Label]) -> Rows:
    from dataclasses import replace

    from assyllm.baselines import zero_shot
    from assyllm.baselines.job import open_model
    from assyllm.evaluate import accuracy, final_rows, seen_facts

    metrics, predictions = [], []
    for name in sorted(p.zoo.models):
        model, tokenizer = open_model(zoo / name, p.tasks.lengths)
        for task, task_files in files.items():
            splits = task_files.splits
            label = replace(labels[task], setting=with_model(labels[task].setting, name))
            length = p.tasks.max_tokens[task]
            answers = zero_shot.answer(model, tokenizer, splits["dev"], splits["test"], length)
            on_dev = accuracy(answers.dev, [q.answer for q in splits["dev"]])
            seen = seen_facts(task_files.held, splits["test"])
            more = final_rows(label, splits["test"], answers.test, seen, on_dev)
            metrics += more[0]
            predictions += more[1]
            right = [q.answer for q in splits["test"]]
            metrics += [label.row("test", kind, accuracy(c, right)) for kind, c in answers.both.items()]
    return metrics, predictions, []


@dataclass(frozen=True, slots=True)
class Job:
    """A fine-tuning method on all tasks of a run."""

    p: Any
    method: str
    zoo: Path
    models: list[str]  # the one that is fine-tuned, or all that are read
    files: dict[str, Any]
    labels: dict[str, Label]
    cost: Path
    seed: int
    checkpoint: Path
    key: str

    def eligible(self) -> list[int]:
        """The clients that take part: those whose memory suffices for every model."""
        from assyllm.federated.cohort import device_memory, eligible_clients

        memory = device_memory(self.seed, self.p.fleet, self.p.partition.clients)
        each = [eligible_clients(self.cost, self.method, model, memory) for model in self.models]
        return [client for client in each[0] if all(client in fits for fits in each)]

    def settings(self, task: str) -> tuple[Any, Any]:
        """What the method is built with on a task, and the round loop's plan."""
        from assyllm.baselines.job import head_plan, plan

        p = self.p
        if self.method in (*P.HEADS, *P.ALL_MODELS):
            head = p.baselines.closed_form
            if self.method == "all_models_head":
                head = head.model_copy(update={"scope": "last_layer"})
            return head, head_plan(head, p.federated)
        tuning = getattr(p.baselines, P.SHARES.get(self.method, self.method))[task]
        return tuning, plan(tuning, p.federated, p.baselines)

    def run(self) -> tuple[str, str, Rows]:
        """Every task's rounds: the budget, no shared trajectory, and the rows."""
        from assyllm.baselines.job import budget
        from assyllm.baselines.rounds import run_rounds
        from assyllm.checkpoint import Checkpoint
        from assyllm.evaluate import final_rows, seen_facts

        eligible, base = self.eligible(), self.base()
        metrics, predictions, timings = [], [], []
        for task, task_files in self.files.items():
            label, splits = self.labels[task], task_files.splits
            settings, plan = self.settings(task)
            subject, data, shortened = self.read(task, settings, base)
            if self.method in P.SHARES:
                metrics += self.proof(task, subject, data, plan, eligible)
            _, outcome = run_rounds(
                subject, data, plan, self.seed, eligible, Checkpoint(self.checkpoint, task, self.key),
                report=partial(_say, task),
            )  # fmt: skip
            seen = seen_facts(task_files.held, splits["test"])
            more = final_rows(label, splits["test"], outcome.test_chosen, seen, outcome.best_dev)
            metrics += [*_round_rows(label, outcome.rounds, subject.loss_unit), *more[0]]
            metrics.append(label.row("", "best_round", float(outcome.best_round)))
            metrics.append(label.row("", "converged_round", float(outcome.converged)))
            metrics.append(label.row("", "eligible_clients", float(len(eligible))))
            metrics.append(label.row("", "shortened_questions", float(shortened)))
            predictions += more[1]
            timings += _timings(label.run_id, task, outcome)
        return budget(self.cost, self.method, self.p.baselines.model), "", (metrics, predictions, timings)

    def alone(self) -> Rows:
        """The rows of a head that the server fits by itself."""
        from assyllm.baselines.method import choose
        from assyllm.evaluate import accuracy, final_rows, seen_facts

        base, metrics, predictions = self.base(), list[Metric](), list[Prediction]()
        for task, task_files in self.files.items():
            subject, data, shortened = self.read(task, self.settings(task)[0], base)
            weights, splits = subject.start(self.seed), task_files.splits
            dev, test = (choose(subject, weights, part).tolist() for part in (data.dev, data.test))
            fitted = accuracy(dev, [q.answer for q in splits["dev"]])  # on the questions that the head was fitted to
            more = final_rows(
                self.labels[task], splits["test"], test, seen_facts(task_files.held, splits["test"]), fitted
            )
            metrics += [*more[0], self.labels[task].row("", "shortened_questions", float(shortened))]
            predictions += more[1]
        return metrics, predictions, []

    def base(self, number: int = 0) -> tuple[Any, Any]:
        """One of the models, and its tokenizer."""
        from assyllm.baselines.job import open_base

        return open_base(self.zoo / self.models[number], self.method, self.p.frozen_base, self.p.tasks.lengths)

    def read(self, task: str, settings: Any, base: tuple[Any, Any]) -> tuple[Any, Any, int]:
        """The method on its model, the task as it reads it, and how many questions lost more than context.

        Further models than ``base``, the first, are in memory one after the other.
        """
        from assyllm.baselines.job import encode_task
        from assyllm.baselines.registry import METHODS, TOGETHER

        known, lost = [], 0
        for number in range(len(self.models)):
            model, tokenizer = self.base(number) if number else base
            subject = METHODS[self.method](model, settings)
            data, shortened = encode_task(self.files[task], tokenizer, subject, self.p.tasks.max_tokens[task])
            if self.method not in TOGETHER:
                return subject, data, shortened
            known.append(subject.prepare(data))
            lost = max(lost, shortened)
        together = TOGETHER[self.method](known, settings.ridge_grid)
        return together, together.data, lost

    def proof(self, task: str, subject: Any, data: Any, plan: Any, eligible: list[int]) -> list[Metric]:
        """Rows that show the device steps of a sharing method to be full fine-tuning's."""
        from assyllm.baselines.full import FullFineTuning
        from assyllm.baselines.sharing import compare

        found = compare(subject, FullFineTuning(subject.base), data, plan, self.seed, eligible)
        label = self.labels[task]
        return [
            label.row("train", "gradient_difference", found.gradient),
            label.row("train", "weight_difference", found.weight),
            label.row("train", "compared_steps", float(found.steps)),
        ]

    def shared(self, folder: Path) -> tuple[str, str, Rows]:
        """As :meth:`run`, with the rounds of the run in ``folder`` if every client takes part in either.

        Raises:
            ArtifactError: the folder is not a whole run of the method that is shared.
        """
        from assyllm.baselines.job import budget

        verify_folder(folder)
        theirs = check_columns(folder / "run.csv", Run)[0]
        if theirs["method"] != P.SHARES.get(self.method):
            raise ArtifactError(f"{folder}: a run of {theirs['method']}, which {self.method} does not share")
        eligible = self.eligible()
        if len(eligible) < self.p.partition.clients:
            return self.run()
        metrics, base = list[Metric](), self.base()
        for task in self.files:
            settings, plan = self.settings(task)
            subject, data, _ = self.read(task, settings, base)
            metrics += self.proof(task, subject, data, plan, eligible)
        ours = {"run_id": next(iter(self.labels.values())).run_id, "method": self.method}
        for row in check_columns(folder / "metrics.csv", Metric):
            value, seed = float(row.pop("value")), int(row.pop("seed"))
            metrics.append(Metric(**row | ours, value=value, seed=seed))  # type: ignore[arg-type]
        predictions = [
            Prediction(**row | ours, seed=self.seed, chosen=int(chosen), correct=int(correct))
            for row in check_columns(folder / "predictions.csv", Prediction)
            for chosen, correct, _ in [(row.pop("chosen"), row.pop("correct"), row.pop("seed"))]
        ]
        return budget(self.cost, self.method, self.p.baselines.model), theirs["method"], (metrics, predictions, [])


def _say(task: str, row: dict[str, Any]) -> None:
    judged = ", ".join(f"{split} {row[split]:.3f}" for split in ("dev", "test") if split in row)
    if judged:
        print(f"{task} round {row['round']}: {judged}", flush=True)


def _round_rows(label: Label, rounds: list[dict[str, Any]], loss_unit: str) -> list[Metric]:
    rows = []
    for entry in rounds:
        number = entry["round"]
        rows += [
            label.row(split, "accuracy", entry[split], round=number) for split in ("dev", "test") if split in entry
        ]
        if "loss" in entry:
            rows.append(label.row("train", "loss", entry["loss"], round=number, unit=loss_unit))
        rows.append(label.row("", "participants", float(entry["participants"]), round=number))
        if "stragglers" in entry:
            rows.append(label.row("", "stragglers", float(entry["stragglers"]), round=number))
        for name in ("bytes_up", "bytes_down"):
            rows.append(label.row("", name, float(entry[name]), round=number))
    return rows


def _timings(run_id: str, task: str, outcome: Any) -> list[dict[str, Any]]:
    answered = sum(entry["participants"] for entry in outcome.rounds)
    total = float(sum(outcome.seconds))
    rows = [{"run_id": run_id, "what": f"{task} training", "value": total, "unit": "s"}]
    for entry, seconds in zip(outcome.rounds, outcome.seconds, strict=True):
        if entry["participants"]:
            each = seconds / entry["participants"]
            rows.append({"run_id": run_id, "what": f"{task}/round/{entry['round']}/client", "value": each, "unit": "s"})
    if answered:
        rows.append({"run_id": run_id, "what": f"{task} client round", "value": total / answered, "unit": "s"})
    return rows
