"""The result tables: their columns, how they are written and read. No torch.

``runs.csv`` has one row per run; ``metrics.csv`` is long, one row per number; ``predictions.csv`` one row per
test question, for paired comparisons; ``timings.csv`` holds wall times and measured memory apart, because only
those may differ between two runs of the same study on one machine type.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from assyllm.artifacts import ArtifactError, write_text

Source = Literal["measured", "modelled", "paper"]
SOURCES = ("measured", "modelled", "paper")
# what `collect` writes beside timings.csv and summary.json, and what a row is of
TABLES = (
    "metrics",  # a number of a run
    "runs",  # a run
    "accuracy",  # task, method, setting and split: mean and interval
    "differences",  # task, method and the one it is held against: paired difference
    "zoos",  # zoo, task and method: accuracy, and how far behind assyllm
    "ablations",  # setting, method and task: accuracy, and its paired difference to the base setting
    "non_iid",  # method, task and partition.alpha: accuracy, and what is lost where clients are unequal
    "models",  # an assembled model
    "cost",  # method, model and memory class: peak memory and participation
    "curves",  # method and reading, at the shape of Llama-7B: peak memory and step time
    "resources",  # method and task: hours, energy and traffic to its accuracy
    "tradeoff",  # method, task and way of selecting blocks: accuracy and a client's energy
    "claims",  # a claim of the paper and a method: the paper's value and ours
    "paper",  # a value that the paper publishes
    "quantizer",  # precision: pool size, and accuracy against bytes
    "model_sizes",  # a model of the pool or a block of it, at true shapes: bytes
    "rounds",  # task, method and round: test accuracy
)
# written by the rules that measure them, on one run that assembles, and read by a few figures only
FIGURE_TABLES = (
    "swap_timeline",  # an event of the swapper's pipelines
    "swap_ablation",  # a pipeline: times; a policy: reads
    "feature_differences",  # a layer of a pair of models: points in a plane, CKA
    "compatibility_heatmaps",  # a finished model: its scores; a cell: CKA of two layers
)


class RunKey(NamedTuple):
    """What identifies a run: the names of its setting and method, the seeds of its zoo and of itself."""

    setting: str
    method: str
    zoo: int
    seed: int

    @classmethod
    @cache
    def of(cls, run_id: str) -> RunKey:
        """The key that a run's id is made of (``base-assyllm-zoo0-seed1``); a setting's name may hold hyphens."""
        setting, method, zoo, seed = run_id.rsplit("-", 3)
        return cls(setting, method, int(zoo.removeprefix("zoo")), int(seed.removeprefix("seed")))

    @property
    def repetition(self) -> str:
        """Which of a method's runs under a setting it is: ``zoo0_seed1``."""
        return f"zoo{self.zoo}_seed{self.seed}"

    @property
    def folder(self) -> str:
        """Where the run's files lie, relative to the working folder."""
        return f"data/runs/{self.setting}/{self.method}/{self.repetition}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One row of ``runs.csv``: a method run once, on all its tasks."""

    run_id: str
    method: str
    tasks: str  # space-separated
    world: str  # embedded | real: whose boolq, piqa and openbookqa these are
    models: str  # zoo members whose weights took part, space-separated
    weights_sha: str  # content hash of the pool, or of those members; "" where there are none
    budget: str  # memory class that bounds the method, e.g. "64 GB", or "none"
    alpha: float
    seed: int
    params_sha: str
    code_sha: str
    setting: str  # canonical key=value text, "" for the base setting
    device: str
    shares_trajectory_of: str = ""  # the method whose run this is, computed once and shown to be equal


# of the metrics that count or weigh something; a loss says its own, accuracies, shares and flags have none
UNITS = {
    **dict.fromkeys(("bytes_up", "bytes_down", "bytes_up_votes", "bytes_up_sums"), "bytes"),
    **dict.fromkeys(("participants", "stragglers", "eligible_clients"), "clients"),
    **dict.fromkeys(("examples", "shortened_questions"), "questions"),
    **dict.fromkeys(("best_round", "converged_round"), "rounds"),
    "compared_steps": "steps", "models_assembled": "models", "times_chosen": "blocks", "votes_dropped": "votes",
    "peak_memory": "GB",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of ``metrics.csv``. ``round``, ``client`` and ``block`` are empty where they do not apply.

    Traffic and participants without a round hold for every round of the task.
    """

    run_id: str
    method: str
    task: str
    world: str
    seed: int
    split: str  # train | dev | test | test_seen | test_unseen, or ""
    round: int | str = ""
    client: int | str = ""
    block: str = ""
    metric: str  # accuracy is in [0, 1]
    value: float
    unit: str = ""
    setting: str = ""
    source: Source = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One row of ``predictions.csv``: a test question answered by a run."""

    run_id: str
    method: str
    task: str
    seed: int
    setting: str
    question: str
    about: str  # what it rests on: questions about the same thing are right or wrong together (intervals)
    seen: str  # "1", "0", or "" where the task has no facts
    chosen: int
    correct: int


def text(value: Any) -> str:
    """A cell's text: floats with ten significant digits (stable bytes), the rest as is."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ArtifactError(f"a result is {value}; results must be finite")
        return f"{value:.10g}"
    return str(value)


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV with stable bytes."""
    buffer = io.StringIO()
    columns = list(columns)
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([text(row[column]) for column in columns])
    return buffer.getvalue()


def write_rows(path: Path, kind: type, rows: Iterable[Any]) -> None:
    """Write dataclass rows (:class:`Run`, :class:`Metric`, :class:`Prediction`) whole or not at all."""
    columns = [field.name for field in fields(kind)]
    write_text(path, csv_text(columns, ({c: getattr(row, c) for c in columns} for row in rows)))


def write_table(path: Path, rows: list[dict[str, Any]], columns: Iterable[str] | None = None) -> None:
    """Write plain rows as CSV whole or not at all; the columns are the first row's unless given."""
    names = list(columns) if columns is not None else list(rows[0])
    write_text(path, csv_text(names, rows))


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV as text cells; a missing file is one :class:`ArtifactError` line."""
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle))
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def check_columns(path: Path, kind: type) -> list[dict[str, str]]:
    """Read a table and check that it has exactly the columns of ``kind`` and known sources."""
    rows = read_table(path)
    columns = [field.name for field in fields(kind)]
    if rows and list(rows[0]) != columns:
        raise ArtifactError(f"{path}: columns {list(rows[0])}, {columns} expected")
    for row in rows:
        if "source" in row and row["source"] not in SOURCES:
            raise ArtifactError(f"{path}: source {row['source']!r} is none of {', '.join(SOURCES)}")
    return rows
