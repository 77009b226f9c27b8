"""Time, energy and traffic to a method's final accuracy: rounds measured at tiny scale x rounds modelled.

No torch: rounds come from the metrics table, steps from the cost tables. Every row says what was multiplied. A round's
time is that of one client (the cohort works side by side); link time is left out, as the paper's hours leave it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from assyllm.adapter.sent import ID, NUMBER, head_sums, linear_sums
from assyllm.cost.shapes import SHAPES
from assyllm.params import ASSEMBLING, HEADS, Assembling, Assemblings, Baselines, Head, Partition, Selection

TRAIN_ITEMS = {"boolq": 9427, "piqa": 16113, "openbookqa": 4957}  # of the real tasks
WIDTH = SHAPES["llama-7b"].hidden
DEPLOYED = ("assyllm_paper", "assyllm")
ONE_MINIBATCH = ("fwdllm",)  # a client uses one minibatch a round
POOL = sum(shape.parameters for shape in SHAPES.values())
DEPTH = 6  # blocks of a model of 32 layers
POOL_BLOCKS = {name: 4 if shape.layers < 24 else DEPTH for name, shape in SHAPES.items()}
RESOURCES = (
    "method", "task", "rounds", "rounds_from", "steps", "step_s", "device", "hours", "energy_kj", "traffic_gb",
    "up_mb", "down_mb", "oneoff_gb", "speedup", "source",
)  # fmt: skip
Rows = Iterable[Mapping[str, Any]]


# a training step walks the chain, walks it again layer by layer, and passes gradients to the inputs of frozen layers
TRAINING = 3
ATTENTION = 5  # matrices of a cross-attention adapter: projection, query, key, value, output


def adapter_bytes(width: int = WIDTH) -> int:
    """One linear adapter between states of ``width``, float32."""
    return NUMBER * (width * width + width)


def selection_traffic(selection: Selection, blocks: int = 28, width: int = WIDTH) -> tuple[float, float]:
    """Bytes (up, down) of a client in one selection round at true widths (``federated.messages``).

    Up: votes, HSIC terms of every candidate, adapter sums of those voted for. Down: ids, and the adapters of every
    candidate and of a chain half as deep as it may get, for every chain of the beam.
    """
    chains, tried, kept = selection.beam, selection.evaluated_per_round or blocks, selection.kept_per_round
    up = NUMBER + chains * (kept * (2 * ID + NUMBER) + tried * 3 * NUMBER + kept * linear_sums(width, width))
    edges = selection.max_blocks / 2 - 1
    down = chains * (tried * (ID + NUMBER) + selection.max_blocks * ID + (tried + edges) * adapter_bytes(width))
    return float(up), float(down)


def rank_adapter_bytes(rank: int, arriving: int = WIDTH, width: int = WIDTH) -> int:
    """What is sent of a ``fixed_attention`` adapter (``FixedAttentionAdapter.sent_bytes``): down, up, bias, float32."""
    return NUMBER * (rank * (arriving + width) + width)


def rereading_bytes() -> int:
    """The adapters' part that ships with the pool: every block's 3 (causal) or 4 patterns of its model, float32."""
    found = 0
    for name, shape in SHAPES.items():
        seen = 3 if shape.family in ("llama", "opt") else 4
        found += POOL_BLOCKS[name] * NUMBER * (seen * shape.hidden + 1) * shape.hidden
    return found


def probe_traffic(chosen: Assembling) -> tuple[float, float]:
    """Bytes (up, down) of a client in one round of the probe rule at true widths: every block on every chain.

    Up: the head's sums of every candidate, at most ``head.sketch_dims`` features each. Down: ids, the head and the
    adapters of each chain of the beam at half its depth, and every candidate's adapter from the widest state.
    """
    selection, depth = chosen.selection, chosen.selection.max_blocks / 2
    tried = _tried(selection)
    share = tried / sum(POOL_BLOCKS.values())
    adapters = sum(n * rank_adapter_bytes(chosen.adapter.rank, WIDTH, SHAPES[m].hidden) for m, n in POOL_BLOCKS.items())
    own = (depth - 1) * rank_adapter_bytes(chosen.adapter.rank)
    up = selection.beam * tried * head_sums_bytes(chosen.head, 1)
    head = NUMBER * depth * _features(chosen.head)
    return float(up), selection.beam * (ID * (tried + depth) + head + own + share * adapters)


def _features(head: Head, width: int = WIDTH) -> int:
    """Features of one block: pooled states of 2 x width, or what is left of them in a sketch."""
    return min(2 * width, head.sketch_dims or 2 * width)


def _tried(selection: Selection) -> int:
    return selection.evaluated_per_round or sum(POOL_BLOCKS.values())


def head_sums_bytes(head: Head, blocks: int, width: int = WIDTH) -> int:
    """One client's sums for the ridge head over ``blocks`` blocks (``assembly.head.HeadSums.bytes``)."""
    return head_sums(_features(head, width) * (blocks if head.scope == "all_blocks" else 1))


def selection_walks(selection: Selection) -> float:
    """Passes through a chain as deep as a 7B model that a client makes per batch in a selection round.

    Every chain of the beam to half its depth (the states before a candidate are kept for all candidates), and every
    candidate's own block: a sixth of a 7B model of a shortlist, the pool's own weight where all of it is tried.
    """
    tried = POOL / SHAPES["llama-7b"].parameters
    if selection.evaluated_per_round:
        tried = selection.evaluated_per_round / DEPTH
    return selection.beam * (selection.max_blocks / 2 / DEPTH + tried)


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

    Of the methods that assemble, the paper's and ours have rows, not the controls. ``up_mb`` and ``down_mb`` are one
    client's in its largest round: at most 10 MB of statistics up is the bound that ours was given.
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
            if method not in DEPLOYED:
                continue
            chosen = assembling.of(method)
            work, traffic, up, down = _assembling(rounds, batches, chosen)
            oneoff = 2.0 * POOL * float(point["pool_bits"]) / 16
            if chosen.adapter.kind == "fixed_attention":
                oneoff += rereading_bytes()
        else:
            epochs = tuning.local_epochs if tuning else 1
            work = rounds * (1 if method in ONE_MINIBATCH else batches * epochs)
            up, down = (1e9 * float(point[f"{way}_gb"]) for way in ("up", "down"))
            up *= getattr(tuning, "asks", 1)  # FwdLLM's server asks until its cap (EXPERIMENTS.md)
            if method in HEADS:  # of one model, from its last states
                up = float(head_sums(2 * WIDTH))
            traffic = rounds * (up + down)
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
                "up_mb": up / 1e6,
                "down_mb": down / 1e6,
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


def _assembling(rounds: float, batches: int, chosen: Assembling) -> tuple[float, float, float, float]:
    """Walks and bytes of a client's place over all rounds, and the bytes (up, down) of its largest round.

    The paper's rule begins with a round of every model's own states; the probe rule with its first block.
    """
    selection, head = chosen.selection, chosen.head
    probes = selection.rule.startswith("probe")
    native = 0.0 if probes else POOL / SHAPES["llama-7b"].parameters
    training = 0.0 if chosen.adapter.tuning == "none" else float(chosen.adapter.tuning_rounds)
    training = min(training, max(0.0, rounds - 2 - head.rounds))
    choosing = max(1.0, rounds - (0 if probes else 1) - head.rounds - training)
    length = selection.max_blocks / DEPTH
    walks = batches * (native + choosing * selection_walks(selection) + (head.rounds + TRAINING * training) * length)
    up, down = probe_traffic(chosen) if probes else selection_traffic(selection)
    one = rank_adapter_bytes(chosen.adapter.rank) if chosen.adapter.kind == "fixed_attention" else adapter_bytes()
    sums, own = head_sums_bytes(head, selection.max_blocks), (selection.max_blocks - 1) * one
    trained = (selection.max_blocks - 1) * ATTENTION * adapter_bytes() if training else 0
    traffic = choosing * (up + down) + head.rounds * (sums + own) + training * 2 * trained
    return walks, traffic, max(up, float(sums), float(trained)), max(down, float(own), float(trained))
