"""From the files of a job to a method's run: what stages ``baseline`` and ``tune`` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assyllm import params as P
from assyllm.artifacts import MANIFEST, verify_folder
from assyllm.baselines.int8 import rounded
from assyllm.baselines.local import Local
from assyllm.baselines.method import Data, Method
from assyllm.baselines.rounds import Plan
from assyllm.federated.cohort import participating
from assyllm.tasks.partition import read_owned
from assyllm.tasks.record import SPLITS, Question, read_questions
from assyllm.zoo.encoding import encode
from assyllm.zoo.forward import Packed, pack
from assyllm.zoo.load import check_length, load_model, load_tokenizer


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """A task's questions by split, and per client the indices of its training questions."""

    splits: dict[str, list[Question]]
    owned: list[list[int]]

    @property
    def held(self) -> list[Question]:
        """The training questions that some client holds."""
        return [self.splits["train"][item] for items in self.owned for item in items]


def read_task(tasks: Path, partition: Path, task: str, dealt: P.Partition) -> TaskFiles:
    """Read a task's splits and who owns what.

    Raises:
        ArtifactError: a file is missing or the partition does not fit the task.
    """
    splits = {split: read_questions(Path(tasks) / task / f"{split}.jsonl") for split in SPLITS}
    path = Path(partition) / f"{task}.csv"
    return TaskFiles(splits, read_owned(path, splits["train"], dealt.clients, dealt.items_per_client))


def encode_task(files: TaskFiles, tokenizer: Any, method: Method, max_tokens: int) -> tuple[Data, int]:
    """Encoded splits of a task as ``method`` sees them; how many questions lost more than context to ``max_tokens``."""
    packed: dict[str, Packed] = {}
    shortened = 0
    for split, questions in files.splits.items():
        encoded = encode(tokenizer, [method.view(question) for question in questions], max_tokens)
        packed[split] = pack(encoded, method.causal)
        shortened += encoded.cut
    return Data(packed["train"], packed["dev"], packed["test"], files.owned), shortened


def plan(tuning: P.Tuning, federated: P.Federated, baselines: P.Baselines) -> Plan:
    """The round loop's settings."""
    server_rate, learning_rate = tuning.rates_of(baselines.model)
    local = Local(
        learning_rate=learning_rate,
        local_epochs=tuning.local_epochs,
        batch=tuning.batch,
        optimizer=tuning.optimizer,
        head_factor=tuning.head_factor,
    )
    return Plan(
        tuning.rounds, federated.clients_per_round, baselines.evaluate_every, local, federated.dropout, tuning.server,
        server_rate, baselines.test_every, federated.stragglers,
    )  # fmt: skip


def head_plan(head: P.ClosedForm, federated: P.Federated) -> Plan:
    """The round loop's settings for a closed-form head: no local steps, judged after every round of sums."""
    local = Local(0.0, 1, 1)
    return Plan(
        head.rounds, federated.clients_per_round, 1, local, federated.dropout, stragglers=federated.stragglers,
        least=federated.least_clients,
    )  # fmt: skip


def open_model(folder: Path, lengths: Mapping[str, int]) -> tuple[Any, Any]:
    """A zoo member's whole model (eager attention: it vectorises over clients) and its tokenizer.

    Args:
        lengths: task -> tokens of its longest row.

    Raises:
        ArtifactError: the folder lacks a file or differs from its manifest, or a task's rows are too long.
    """
    if (Path(folder) / MANIFEST).is_file():
        verify_folder(folder)
    model = load_model(folder)
    check_length(model.config, Path(folder).name, lengths)
    return model, load_tokenizer(folder)


def open_base(folder: Path, method: str, base: P.FrozenBase, lengths: Mapping[str, int]) -> tuple[Any, Any]:
    """As :func:`open_model`, the weights rounded to INT8 where ``method`` does not train them and ``base`` says so."""
    model, tokenizer = open_model(folder, lengths)
    return (rounded(model) if method in P.FROZEN_BASE and base.bits == 8 else model), tokenizer


def budget(cost: Path, method: str, model: str) -> str:
    """The smallest memory class that takes part, e.g. ``"64 GB"``.

    ``"none"`` where memory excludes no one, ``"no device"`` where it excludes everybody.
    """
    classes = participating(cost, method, model)
    inside = [memory for memory, fits in classes.items() if fits]
    if not inside:
        return "no device"
    return f"{min(inside)} GB" if len(inside) < len(classes) else "none"
