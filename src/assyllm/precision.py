"""Accuracy against bytes as a table: measured on the zoo's pools, with and without a re-fit. No torch.

Without a re-fit: the models of the setting that `study.<size>.precision.fitted_on` names, their blocks replaced (stage
``precision``). With one: runs of the same method under the other settings. Differences are paired, by seed, zoo and
question, with the models as they were fitted. Sizes at 7B shapes stand in the same table, modelled.
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
from assyllm.results import read_table

COLUMNS = (
    "what", "precision", "refit", "method", "task", "world", "bits", "size_gb", "mean", "low", "high",
    "difference", "difference_low", "difference_high", "runs", "source",
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
    for p in predictions:
        setting, method, repetition = p["run_id"].split("-", 2)
        if setting in sizes:
            grouped[setting, method, p["task"], repetition.replace("-", "_")].append(int(p["correct"]))
    for (setting, method, task, repetition), values in grouped.items():
        refitted[setting, method, task][repetition] = np.array(values)
    for refit, found in ((0, replaced), (1, refitted)):
        rows += _accuracies(found, replaced, fitted_on, sizes, refit, world, ev)
    return rows


def _accuracies(
    found: Hits, plain: Hits, fitted_on: str, sizes: Mapping[str, tuple[float, float]], refit: int, world: str,
    ev: Evaluate,
) -> list[dict[str, Any]]:  # fmt: skip
    rows = []
    for (setting, method, task), by_run in sorted(found.items(), key=lambda i: (i[0][1:], -sizes[i[0][0]][0])):
        plainly = plain.get((fitted_on, method, task), {})
        runs = sorted(set(by_run) & set(plainly))
        if not runs:
            continue
        hits = [by_run[run] for run in runs]
        less = [by_run[run] - plainly[run] for run in runs]
        name = f"precision/{setting}/{method}/{task}/{refit}"
        mean, low, high = paired_bootstrap(hits, ev.bootstrap_samples, ev.interval, name)
        difference, below, above = paired_bootstrap(less, ev.bootstrap_samples, ev.interval, f"{name}/difference")
        bits, size = sizes[setting]
        rows.append(
            {
                "what": "accuracy", "precision": setting, "refit": refit, "method": method, "task": task,
                "world": world, "bits": bits, "size_gb": size, "mean": mean, "low": low, "high": high,
                "difference": difference, "difference_low": below, "difference_high": above, "runs": len(runs),
                "source": "measured",
            }
        )  # fmt: skip
    return rows
