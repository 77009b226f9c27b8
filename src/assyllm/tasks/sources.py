"""The real tasks from local JSON lines or from the hub, both through `datasets`, one's own, and how they are cut.

Local files: ``<folder>/<task>/{train,validation[,test]}.jsonl``; the folder is the environment variable
ASSYLLM_DATA, else ``tasks.local_dir``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from assyllm import params, seeding
from assyllm.artifacts import ArtifactError, read_text
from assyllm.tasks import boolq, openbookqa, own, piqa
from assyllm.tasks.record import Question

MODULES: Mapping[str, Any] = {"boolq": boolq, "piqa": piqa, "openbookqa": openbookqa}
VARIABLE = "ASSYLLM_DATA"
CARVED_TEST = 500  # items of train that join OpenBookQA's 500 validation items where there is no test file
Splits = dict[str, list[Question]]


def load(task: str, source: Literal["local", "hub"], local_dir: Path) -> Splits:
    """All published splits of a task that carry labels: "train", "validation" and perhaps "test".

    Raises:
        ArtifactError: one line naming the file and row at fault, or where to get what is missing.
    """
    if source == "hub":
        return {
            split: _questions(task, [*enumerate(_hub_rows(task, split), start=1)], f"{MODULES[task].HUB[0]} {split}")
            for split in sorted({"train", "validation", *MODULES[task].TEST})
        }
    folder = Path(os.environ.get(VARIABLE) or local_dir) / task
    found = {split: folder / f"{split}.jsonl" for split in ("train", "validation", "test")}
    for split in ("train", "validation"):
        if not found[split].is_file():
            there = _module(task).HUB
            published = f" (from huggingface.co/datasets/{there[0]})" if there else ""
            other = ", or use tasks.source: hub" if there else ""
            raise ArtifactError(
                f"{found[split]}: missing; put {task} there as JSON lines{published}, "
                f"set {VARIABLE} to a folder that has it{other}"
            )
    present = {split: path for split, path in found.items() if path.is_file()}
    if "test" not in _module(task).TEST:
        present.pop("test", None)
    return {split: _questions(task, _local_rows(path), str(path)) for split, path in present.items()}


def _module(task: str) -> Any:
    """What reads a task's rows: its own module, or for a task of one's own the plain format."""
    return MODULES.get(task, own)


def cut(task: str, published: Splits, settings: params.Tasks) -> Splits:
    """Train, dev and test as ``params.tasks`` wants them; the same cut on every machine.

    Test is BoolQ's and PIQA's validation, OpenBookQA's test; where OpenBookQA's test is missing, its
    validation and up to 500 items (a tenth at most) carved from train. Dev is carved before train is capped.

    Raises:
        ArtifactError: train is too small for ``dev_items``.
    """
    train = published["train"]
    test = [q for split in _module(task).TEST for q in published.get(split, [])]
    order = seeding.rng("tasks", task, "cut").permutation(len(train))
    if not test:
        carved, order = np.split(order, [min(CARVED_TEST, len(train) // 10)])
        test = published["validation"] + [train[i] for i in np.sort(carved)]
    if settings.dev_items >= len(order):
        raise ArtifactError(f"tasks.dev_items: {settings.dev_items} of {len(order)} {task} training items")
    dev, rest = np.split(order, [settings.dev_items])
    rest = rest[: settings.train_items[task]]
    return {
        "train": [train[i] for i in np.sort(rest)],
        "dev": [train[i] for i in np.sort(dev)],
        "test": _capped(test, settings.test_items, task),
    }


def public_texts(dev: Sequence[Question]) -> list[str]:
    """The server's unlabelled text: every "stem choice" of its development split, first choices first."""
    most = max((len(q.choices) for q in dev), default=0)
    return [f"{q.stem} {q.choices[c]}" for c in range(most) for q in dev if c < len(q.choices)]


def _capped(questions: list[Question], cap: int | None, task: str) -> list[Question]:
    if cap is None or cap >= len(questions):
        return questions
    chosen = seeding.rng("tasks", task, "test").choice(len(questions), size=cap, replace=False)
    return [questions[i] for i in np.sort(chosen)]


def _questions(task: str, rows: Sequence[tuple[int, Mapping[str, Any]]], where: str) -> list[Question]:
    questions, seen = [], set()
    stem = Path(where).stem.split()[-1]
    for number, row in rows:
        try:
            question = _module(task).question(row, f"{task}-{stem}-{number}")
        except (ValueError, ArtifactError) as error:
            raise ArtifactError(f"{where}, row {number}: {error}") from None
        if question.id in seen:
            raise ArtifactError(f"{where}, row {number}: the id {question.id!r} occurs twice")
        seen.add(question.id)
        questions.append(question)
    if not questions:
        raise ArtifactError(f"{where}: no rows")
    return questions


def _local_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of a JSON-lines file through `datasets`, which gives every row the same fields."""
    lines: list[int] = []
    rows: list[dict[str, Any]] = []
    kinds: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{path}, row {number}: not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise ArtifactError(f"{path}, row {number}: an object is expected")
        for name, value in row.items():
            kind = _kind(value)
            known = kinds.setdefault(name, kind) or kind
            mixed_numbers = {known, kind} == {"int", "float"} and name not in ("answer", "label")
            if kind and kind != known and not mixed_numbers:
                raise ArtifactError(f"{path}, row {number}: {name} is {kind}, before {known}")
            kinds[name] = known
        lines.append(number)
        rows.append(row)
    datasets = _datasets()
    try:
        # not from_json: Arrow's reader of JSON makes times of texts that look like one
        table = datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in kinds})
        return list(zip(lines, table.to_list(), strict=True))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: {_line(error)}") from None


def _kind(value: Any) -> str:
    """What a JSON value is, e.g. ``list of str``; "" where it does not say (null, an empty list)."""
    if isinstance(value, list):
        inner = sorted({type(item).__name__ for item in value})
        return f"list of {' and '.join(inner)}" if inner else ""
    return "" if value is None else type(value).__name__


def _hub_rows(task: str, split: str) -> list[dict[str, Any]]:
    name, configuration, revision = MODULES[task].HUB
    datasets = _datasets()
    try:
        return datasets.load_dataset(name, configuration, split=split, revision=revision).to_list()
    except Exception as error:  # the hub's client raises many kinds; each means that the data cannot be had
        raise ArtifactError(f"{name} ({split}): cannot be loaded from the hub: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _datasets() -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets
