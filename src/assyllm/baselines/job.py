"""From the files of a job to a method's run: what stages ``baseline`` and ``tune`` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assyllm import params as P
from assyllm.artifacts import ArtifactError
from assyllm.baselines.local import Local
from assyllm.baselines.rounds import Data, Plan
from assyllm.results import read_table
from assyllm.tasks.partition import read_owned
from assyllm.tasks.record import SPLITS, Question, read_questions
from assyllm.zoo.encoding import encode
from assyllm.zoo.forward import Packed, pack


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """A task's questions by split, and per client the indices of its training questions."""

    splits: dict[str, list[Question]]
    owned: list[list[int]]


def read_task(tasks: Path, partition: Path, task: str, clients: int) -> TaskFiles:
    """Read a task's splits and who owns what.

    Raises:
        ArtifactError: a file is missing or the partition does not fit the task.
    """
    splits = {split: read_questions(Path(tasks) / task / f"{split}.jsonl") for split in SPLITS}
    return TaskFiles(splits, read_owned(Path(partition) / f"{task}.csv", splits["train"], clients))


def encode_task(files: TaskFiles, tokenizer: Any, causal: bool, max_tokens: int) -> tuple[Data, int]:
    """Encoded splits of a task, and how many questions lost more than context to ``max_tokens``."""
    packed: dict[str, Packed] = {}
    shortened = 0
    for split, questions in files.splits.items():
        encoded = encode(tokenizer, questions, max_tokens)
        packed[split] = pack(encoded, causal)
        shortened += encoded.cut
    return Data(packed["train"], packed["dev"], packed["test"], files.owned), shortened


def plan(tuning: P.Tuning, federated: P.Federated, evaluate_every: int) -> Plan:
    """The round loop's settings."""
    local = Local(
        learning_rate=tuning.learning_rate,
        local_epochs=tuning.local_epochs,
        batch=tuning.batch,
        optimizer=tuning.optimizer,
        head_factor=tuning.head_factor,
    )
    return Plan(tuning.rounds, federated.clients_per_round, evaluate_every, local, federated.dropout)


def takes_part(cost: Path, method: str, model: str) -> Callable[[int], bool]:
    """Which memory classes (GB) can run ``method`` on ``model``, from the cost table.

    Raises:
        ArtifactError: the table says nothing about that method and model.
    """
    rows = [row for row in read_table(cost) if row["method"] == method and row["model"] == model]
    if not rows:
        raise ArtifactError(f"{cost}: no row for method {method} and model {model}")
    classes = {int(row["memory_gb"]): bool(int(row["participates"])) for row in rows}

    def check(memory_gb: int) -> bool:
        if memory_gb not in classes:
            raise ArtifactError(f"{cost}: no row for devices of {memory_gb} GB")
        return classes[memory_gb]

    return check


def eligible_clients(memory_gb: Sequence[int], check: Callable[[int], bool]) -> list[int]:
    """Numbers of the clients whose device takes part."""
    return [client for client, memory in enumerate(memory_gb) if check(memory)]
