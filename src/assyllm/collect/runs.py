"""What runs wrote: read, checked, without what nobody answered, and with traffic told once."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from assyllm.artifacts import ArtifactError
from assyllm.collect.hits import Rows
from assyllm.results import UNITS, check_columns, read_table

PER_ROUND = ("participants", "bytes_up", "bytes_down", "bytes_up_votes", "bytes_up_sums")  # see `condensed`


def gather(runs: Iterable[Path], name: str, kind: type) -> Rows:
    """The rows of one table over all runs, in the runs' order.

    Raises:
        ArtifactError: a run lacks the table or has other columns.
    """
    return [row for run in runs for row in check_columns(Path(run) / f"{name}.csv", kind)]


def gather_optional(runs: Iterable[Path], name: str) -> Rows:
    """The rows of a table that only some runs have (assembled models, timings)."""
    return [row for run in runs if (Path(run) / f"{name}.csv").is_file() for row in read_table(run / f"{name}.csv")]


def paper_values() -> Rows:
    """The paper's published values, as shipped with the package."""
    text = files("assyllm").joinpath("paper_values.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


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
        rows.append({**common, "metric": "peak_memory", "value": peak, "unit": UNITS["peak_memory"]})
        rows.append({**common, "metric": "participation", "value": share, "unit": ""})
    return rows
