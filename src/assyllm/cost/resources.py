"""Time, energy and traffic to a method's final accuracy: rounds measured at tiny scale x rounds modelled.

No torch: rounds come from the metrics table, steps from the cost tables. Every row says what was multiplied. A round's
time is that of its slowest client (the cohort works side by side), its energy a client's mean; link time is left out,
as the paper's hours leave it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from assyllm.adapter.sent import block_features, head_sums
from assyllm.cost.shapes import Shape, shape_of
from assyllm.cost.walked import Spent, pool_bytes, priced
from assyllm.params import ASSEMBLING, HEADS, FwdLLMTuning, is_base

TRAIN_ITEMS = {"boolq": 9427, "piqa": 16113, "openbookqa": 4957}  # of the real tasks
# Tokens of a question's rows, one a choice, over those of its one row in which a whole decoder reads all choices behind
# their stem (zoo.forward.pack). Blocks cannot share a stem: those of encoders see every token. Of the real tasks.
ROWS_PER_CHOICE = {"boolq": 1.98, "piqa": 1.39, "openbookqa": 2.36}
DEPLOYED = ("assyllm_paper", "assyllm")
ONE_MINIBATCH = ("fwdllm",)  # a client uses one minibatch a round
RESOURCES = (
    "method", "task", "rounds", "rounds_from", "steps", "step_s", "device", "hours", "energy_kj", "traffic_gb",
    "up_mb", "down_mb", "oneoff_gb", "speedup", "source",
)  # fmt: skip
HOURS = ("hours", "hours_source")  # of rounds.csv
TRADEOFF = ("setting", "method", "task", "world", "what", "value", "low", "high", "runs", "source")
Rows = Iterable[Mapping[str, Any]]


def rounds_of(metrics: Rows) -> dict[tuple[str, str], tuple[float, str]]:
    """(method, task) -> mean rounds to its final accuracy on the base setting, and which metric said so.

    ``converged_round`` where runs report it, else the round that was best on the development split; a method that
    assembles needs all of its rounds.
    """
    found: dict[tuple[str, str, str], list[float]] = {}
    last: dict[tuple[str, str], dict[str, int]] = {}
    for m in metrics:
        if not is_base(str(m["setting"])):
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


def places_of(walks: Rows, models: Rows, p: Any) -> dict[tuple[str, str, str], Spent]:
    """What the recorded walks ask of one client, by setting, method and task; see :func:`priced`."""
    weight = p.cost.bytes_per_weight
    return priced(walks, models, p.zoo, p.blocks, p.baselines.model, p.assembling, weight)


def resources_table(
    metrics: Rows, cost: Rows, places: Mapping[tuple[str, str, str], Spent], p: Any
) -> list[dict[str, Any]]:
    """One row per method and task: hours, energy and traffic of one client's place in the cohort, one-off download.

    Of the methods that assemble, the paper's and ours have rows, not the controls: their recorded walks, in passes
    through the baselines' model at the precision of the pool, each as many times longer as its rows have more tokens
    than the baselines' (:data:`ROWS_PER_CHOICE`). ``up_mb`` and ``down_mb`` are one client's in its
    largest round: at most 10 MB of statistics up is the bound that ours was given. ``speedup`` is ft_practical's hours
    over the method's, as in the paper's tables 4 and 5.

    Args:
        places: from :func:`places_of`.
        p: the parsed sections ``zoo``, ``blocks``, ``partition``, ``baselines``, ``assembling`` and ``cost``.
    """
    steps = {c["method"]: c for c in cost if c["model"] == p.baselines.model}
    whole, weight = shape_of(p.zoo.models[p.baselines.model].stands_for), p.cost.bytes_per_weight
    rows: list[dict[str, Any]] = []
    for (method, task), (rounds, counted) in sorted(rounds_of(metrics).items()):
        point = steps.get(method)
        if point is None or task not in TRAIN_ITEMS or float(point["step_s"]) == 0:
            continue
        known: dict[str, Any] = getattr(p.baselines, method, None) or dict(p.baselines.ft_oracle)
        tuning = known.get(task)
        held = TRAIN_ITEMS[task] / p.partition.clients
        batches = math.ceil(min(held, p.partition.items_per_client or held) / int(point["batch"]))
        if method in ASSEMBLING:
            place = places.get(("", method, task))
            if method not in DEPLOYED or place is None:
                continue
            work, lasts = (batches * walks * ROWS_PER_CHOICE[task] for walks in (place.walks, place.course[-1]))
            traffic, up, down = place.traffic, place.up, place.down
            chosen = p.assembling.of(method)
            rereads = chosen.adapter.kind == "fixed_attention" and chosen.selection.joins
            oneoff = pool_bytes(p.zoo, p.blocks, float(point["pool_bits"]), rereads, weight)
        else:
            epochs = tuning.local_epochs if tuning and method not in HEADS else 1
            work = rounds * (1 if method in ONE_MINIBATCH else batches * epochs)
            up, down = (1e9 * float(point[f"{way}_gb"]) for way in ("up", "down"))
            if isinstance(tuning, FwdLLMTuning):  # its server asks until the cap, and tells the last estimate
                up, down = tuning.asks * up, 2 * down
            if method in HEADS:  # of one model
                own = p.baselines.closed_form
                layers = whole.layers if own.scope == "all_layers" else 1
                up = float(head_sums(layers * block_features(whole.hidden, own.sketch_dims)))
            oneoff = float(weight * whole.parameters)  # a frozen base is rounded on the device, as bitsandbytes does
            if method == "all_models_head":
                shapes = [shape_of(member.stands_for) for member in p.zoo.models.values()]
                work *= sum(_passes(shape, whole, task) for shape in shapes)
                up = float(head_sums(sum(block_features(s.hidden, own.sketch_dims) for s in shapes)))
                oneoff = float(weight * sum(shape.parameters for shape in shapes))
            traffic, lasts = rounds * (up + down), work
        rows.append(
            {
                "method": method,
                "task": task,
                "rounds": rounds,
                "rounds_from": counted,
                "steps": work,
                "step_s": float(point["step_s"]),
                "device": point["device"],
                "hours": lasts * float(point["step_s"]) / 3600,
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


def with_hours(rounds: Rows, resources: Rows, places: Mapping[tuple[str, str, str], Spent]) -> list[dict[str, Any]]:
    """Rows of rounds.csv with ``hours``, those of a client until the end of the round (modelled); "" if not known.

    A baseline's rounds are alike. Those of a method that assembles are not: its hours go by its recorded walk.

    Args:
        resources: of :func:`resources_table`; ``places``: from :func:`places_of`.
    """
    known = {(row["method"], row["task"]): row for row in resources}
    rows = []
    for row in rounds:
        key = (row["method"], row["task"])
        hours: float | str = ""
        if key in known and known[key]["rounds"]:
            number, course = int(row["round"]), places[("", *key)].course if key[0] in DEPLOYED else ()
            gone = course[min(number, len(course)) - 1] / course[-1] if course else number / known[key]["rounds"]
            hours = known[key]["hours"] * gone
        rows.append({**row, "hours": hours, "hours_source": "" if hours == "" else "modelled"})
    return rows


def _passes(shape: Shape, whole: Shape, task: str) -> float:
    """Passes through ``whole`` that one through a whole model comes to; encoders see a row a choice."""
    rows = 1.0 if shape.causal else ROWS_PER_CHOICE[task]
    return rows * shape.layers * shape.layer_parameters / (whole.layers * whole.layer_parameters)


def tradeoff_table(
    accuracy: Rows, resources: Rows, places: Mapping[tuple[str, str, str], Spent]
) -> list[dict[str, Any]]:
    """Accuracy (measured) and what it costs a client (modelled), by method and by way of selecting blocks.

    A row each for ``accuracy`` (test), ``energy_kj`` and ``energy_of_full``, the energy over FT-oracle's on the same
    task, of every method that has :func:`resources_table` rows; of the paper's method and ours also in the settings
    that change nothing but ``selection``: the same steps, as many as their own recorded walks come to.

    Args:
        accuracy: rows of accuracy.csv; ``resources``: of :func:`resources_table`; ``places``: from :func:`places_of`.
    """
    base = {(row["method"], row["task"]): row for row in resources}
    rows: list[dict[str, Any]] = []
    for found in accuracy:
        setting = "" if is_base(found["setting"]) else str(found["setting"])
        key, known = (found["method"], found["task"]), base.get((found["method"], found["task"]))
        if found["split"] != "test" or known is None or ("ft_oracle", found["task"]) not in base:
            continue
        times = 1.0
        if setting:
            if key[0] not in DEPLOYED or (setting, *key) not in places:
                continue
            times = places[setting, *key].walks / places["", *key].walks
        energy = times * known["energy_kj"]
        whole = base["ft_oracle", found["task"]]["energy_kj"]
        shared = {"setting": setting, "method": key[0], "task": key[1], "world": found["world"], "runs": found["runs"]}
        rows.append(shared | {"what": "accuracy", "value": found["mean"], "low": found["low"], "high": found["high"],
                              "source": "measured"})  # fmt: skip
        for what, value in (("energy_kj", energy), ("energy_of_full", energy / whole)):
            rows.append(shared | {"what": what, "value": value, "low": "", "high": "", "source": "modelled"})
    return rows
