"""Time, energy and traffic to a method's final accuracy: rounds measured at tiny scale x rounds modelled.

No torch: rounds come from the metrics table, steps from the cost tables. Every row says what was multiplied. A round's
time is that of one client (the cohort works side by side); link time is left out, as the paper's hours leave it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from assyllm.cost.shapes import SHAPES
from assyllm.params import ASSEMBLING, Assemblings, Baselines, Head, Partition, Selection

TRAIN_ITEMS = {"boolq": 9427, "piqa": 16113, "openbookqa": 4957}  # of the real tasks
WIDTH = SHAPES["llama-7b"].hidden
ONE_MINIBATCH = ("fwdllm",)  # a client uses one minibatch a round
NUMBER, ID = 4, 2  # bytes of a number and of a block id in a message
RESOURCES = (
    "method", "task", "rounds", "rounds_from", "steps", "step_s", "device", "hours", "energy_kj", "traffic_gb",
    "oneoff_gb", "speedup", "source",
)  # fmt: skip
Rows = Iterable[Mapping[str, Any]]


def adapter_bytes(width: int = WIDTH) -> int:
    """One linear adapter between states of ``width``, float32."""
    return NUMBER * (width * width + width)


def adapter_sums_bytes(width: int = WIDTH) -> int:
    """One client's sums for it: the upper triangle of X'X, X'Y, column sums (``adapter.linear.LinearSums.bytes``)."""
    return NUMBER * (width * (width + 1) // 2 + width * width + 2 * width + 2)


def selection_traffic(selection: Selection, blocks: int = 28, width: int = WIDTH) -> tuple[float, float]:
    """Bytes (up, down) of a client in one selection round at true widths (``federated.messages``).

    Up: votes, HSIC terms of every candidate, adapter sums of those voted for. Down: ids, and the adapters of every
    candidate and of a chain half as deep as it may get, for every chain of the beam.
    """
    chains, tried, kept = selection.beam, selection.evaluated_per_round or blocks, selection.kept_per_round
    up = NUMBER + chains * (kept * (2 * ID + NUMBER) + tried * 3 * NUMBER + kept * adapter_sums_bytes(width))
    edges = selection.max_blocks / 2 - 1
    down = chains * (tried * (ID + NUMBER) + selection.max_blocks * ID + (tried + edges) * adapter_bytes(width))
    return float(up), float(down)


def head_sums_bytes(head: Head, blocks: int, width: int = WIDTH) -> int:
    """One client's sums for the ridge head over pooled states of 2 x width a block (``assembly.head.HeadSums``)."""
    features = 2 * width * (blocks if head.scope == "all_blocks" else 1)
    return NUMBER * (features * (features + 1) // 2 + features + 2)


def selection_walks(selection: Selection, blocks: int = 28) -> float:
    """Passes through a chain as deep as a 7B model that a client makes per batch in a selection round.

    Every chain of the beam to half its depth, and every candidate's own block (a sixth of a model).
    """
    return selection.beam * (0.5 + (selection.evaluated_per_round or blocks) / 6)


def rounds_of(metrics: Rows) -> dict[tuple[str, str], tuple[float, str]]:
    """(method, task) -> mean rounds to its final accuracy on the base setting, and which metric said so.

    ``converged_round`` where runs report it, else the round that was best on the development split; a method that
    assembles needs all of its rounds.
    """
    found: dict[tuple[str, str, str], list[float]] = {}
    last: dict[tuple[str, str], dict[str, int]] = {}
    for m in metrics:
        if m["setting"] and not str(m["setting"]).startswith("zoo.seed="):
            continue
        key = (m["method"], m["task"])
        if m["metric"] in ("converged_round", "best_round"):
            found.setdefault((*key, m["metric"]), []).append(float(m["value"]))
        if str(m["round"]) != "":
            runs = last.setdefault(key, {})
            runs[m["run_id"]] = max(runs.get(m["run_id"], 0), int(m["round"]))
    rounds: dict[tuple[str, str], tuple[float, str]] = {}
    for key, runs in last.items():
        rounds[key] = (sum(runs.values()) / len(runs), "all rounds")
        for metric in ("best_round", "converged_round"):
            values = found.get((*key, metric))
            if values:
                rounds[key] = (sum(values) / len(values), metric)
    return rounds


def resources_table(
    metrics: Rows, cost: Rows, baselines: Baselines, assembling: Assemblings, partition: Partition
) -> list[dict[str, Any]]:
    """One row per method and task: hours, energy and traffic of one client's place in the cohort, one-off download.

    Of the methods that assemble, the paper's has a row: the messages of the others are not scaled to true widths yet.
    ``speedup`` is ft_practical's hours over the method's, as in the paper's tables 4 and 5.
    """
    steps = {}
    for c in cost:
        if c["model"] == ("pool" if c["method"] in ASSEMBLING else baselines.model):
            steps[c["method"]] = c
    rows: list[dict[str, Any]] = []
    for (method, task), (rounds, counted) in sorted(rounds_of(metrics).items()):
        point = steps.get(method)
        if point is None or task not in TRAIN_ITEMS or float(point["step_s"]) == 0:
            continue
        known: dict[str, Any] = getattr(baselines, method, None) or dict(baselines.ft_oracle)
        tuning = known.get(task)
        batches = math.ceil(TRAIN_ITEMS[task] / partition.clients / int(point["batch"]))
        if method in ASSEMBLING:
            if method != "assyllm_paper":
                continue
            chosen = assembling.of(method)
            work, traffic, oneoff = _assembling(rounds, batches, chosen.selection, chosen.head)
            oneoff *= float(point["pool_bits"]) / 16
        else:
            epochs = tuning.local_epochs if tuning else 1
            work = rounds * (1 if method in ONE_MINIBATCH else batches * epochs)
            traffic = rounds * 1e9 * (float(point["up_gb"]) + float(point["down_gb"]))
            oneoff = 2.0 * SHAPES["llama-7b"].parameters
        rows.append(
            {
                "method": method,
                "task": task,
                "rounds": rounds,
                "rounds_from": counted,
                "steps": work,
                "step_s": float(point["step_s"]),
                "device": point["device"],
                "hours": work * float(point["step_s"]) / 3600,
                "energy_kj": work * float(point["step_j"]) / 1e3,
                "traffic_gb": traffic / 1e9,
                "oneoff_gb": oneoff / 1e9,
                "speedup": "",
                "source": "modelled",
            }
        )
    base = {row["task"]: row["hours"] for row in rows if row["method"] == "ft_practical"}
    for row in rows:
        if row["task"] in base and row["hours"]:
            row["speedup"] = base[row["task"]] / row["hours"]
    return rows


def _assembling(rounds: float, batches: int, selection: Selection, head: Head) -> tuple[float, float, float]:
    """Walks of a client's place over all rounds, bytes, and the pool's bytes in 16 bit: native, selection, head."""
    pool = sum(shape.parameters for shape in SHAPES.values())
    choosing = max(1.0, rounds - 1 - head.rounds)
    native = pool / SHAPES["llama-7b"].parameters
    walks = batches * (native + choosing * selection_walks(selection) + head.rounds)
    up, down = selection_traffic(selection)
    sums = head_sums_bytes(head, selection.max_blocks)
    own = (selection.max_blocks - 1) * adapter_bytes()
    return walks, choosing * (up + down) + head.rounds * (sums + own), 2.0 * pool
