"""Accuracy against bytes as a table: measured on the zoo's pools, with and without a re-fit. No torch.

Without a re-fit: the models of the setting that `study.<size>.precision.fitted_on` names, their blocks replaced (stage
``precision``). With one: runs of the same method under the other settings. Differences are paired, by seed, zoo and
question, with the models as they were fitted, and with INT4 (setting ``int4``) at the same re-fit. Sizes at 7B shapes
stand in the same table, modelled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assyllm.cost.pool_sizes import pool_table
from assyllm.evaluate import paired_bootstrap
from assyllm.params import Blocks, Evaluate, Zoo
from assyllm.results import RunKey, read_table

COLUMNS = (
    "what", "precision", "refit", "method", "task", "world", "bits", "size_gb", "mean", "low", "high",
    "difference", "difference_low", "difference_high", "over_int4", "over_int4_low", "over_int4_high", "runs", "source",
)  # fmt: skip
# (setting, method, task) -> repetition -> 0 or 1 for each question
Hits = dict[tuple[str, str, str], dict[str, np.ndarray]]


def quantizer_table(
    zoo: Zoo, blocks: Blocks, folders: Iterable[Path], predictions: list[dict[str, str]], world: str, ev: Evaluate
) -> list[dict[str, Any]]:
    """Rows what = size (7B shapes, modelled) and what = accuracy (measured).

    Args:
        folders: tables of the stage ``precision``; its repetitions are named by their files.
        predictions: of all runs.
    """
    rows = [
        dict.fromkeys(COLUMNS, "") | {
            "what": "size", "precision": row["precision"], "bits": row["bits"], "size_gb": row["size_gb"],
            "source": row["source"],
        }
        for row in pool_table(zoo, blocks)
    ]  # fmt: skip
    replaced: Hits = defaultdict(dict)
    sizes: dict[str, tuple[float, float]] = {}
    fitted_on = ""
    for path in folders:
        for row in read_table(path):
            fitted_on = row["fitted_on"]
            hits = np.array([int(mark) for mark in row["correct"]])
            replaced[row["setting"], row["method"], row["task"]][Path(path).stem] = hits
            size, weights = int(row["pool_bytes"]), int(row["pool_weights"])
            sizes[row["setting"]] = (8 * size / weights, size / 1e9)
    refitted: Hits = defaultdict(dict)
    grouped: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    about: dict[str, dict[str, str]] = defaultdict(dict)  # task -> question -> what it is about, in the test's order
    for p in predictions:
        run = RunKey.of(p["run_id"])
        if run.setting in sizes:
            about[p["task"]][p["question"]] = p["about"]
            grouped[run.setting, run.method, p["task"], run.repetition].append(int(p["correct"]))
    for (setting, method, task, repetition), values in grouped.items():
        refitted[setting, method, task][repetition] = np.array(values)
    clusters = {task: list(found.values()) for task, found in about.items()}
    for refit, found in ((0, replaced), (1, refitted)):
        rows += _accuracies(found, replaced, fitted_on, sizes, refit, world, clusters, ev)
    return rows


def _accuracies(
    found: Hits, plain: Hits, fitted_on: str, sizes: Mapping[str, tuple[float, float]], refit: int, world: str,
    clusters: Mapping[str, list[str]], ev: Evaluate,
) -> list[dict[str, Any]]:  # fmt: skip
    rows = []
    for (setting, method, task), by_run in sorted(found.items(), key=lambda i: (i[0][1:], -sizes[i[0][0]][0])):
        plainly = plain.get((fitted_on, method, task), {})
        runs = sorted(set(by_run) & set(plainly))
        if not runs:
            continue
        hits = [by_run[run] for run in runs]
        less = [by_run[run] - plainly[run] for run in runs]
        of = (clusters[task], ev.bootstrap_samples, ev.interval)
        (mean, low, high), (difference, below, above) = paired_bootstrap(hits, *of), paired_bootstrap(less, *of)
        int4 = found.get(("int4", method, task), {})
        over: tuple[Any, ...] = ("", "", "")
        if setting != "int4" and set(runs) <= set(int4):
            over = paired_bootstrap([by_run[run] - int4[run] for run in runs], *of)
        bits, size = sizes[setting]
        rows.append(
            {
                "what": "accuracy", "precision": setting, "refit": refit, "method": method, "task": task,
                "world": world, "bits": bits, "size_gb": size, "mean": mean, "low": low, "high": high,
                "difference": difference, "difference_low": below, "difference_high": above,
                "over_int4": over[0], "over_int4_low": over[1], "over_int4_high": over[2], "runs": len(runs),
                "source": "measured",
            }
        )  # fmt: skip
    return rows
