"""How far `assyllm` is above the other methods on zoos of real language, paired over questions and seeds.

    python benchmarks/language_zoos.py --hits benchmarks/language_zoos_hits.csv --out benchmarks/language_zoos.csv

``--hits`` is the ``hits.csv`` that `tests/gpu/language_tasks_h200.py` writes, those of several zoos and seeds one after
the other: a row a run, with the zoo's ``--seed`` of `tests/gpu/pretrain_h200.py` and 0 or 1 for every test question in
order of their names. Out come each method's accuracy, and what `assyllm` is above it by, a zoo and over all of them, on
the seeds that both have; differences resample runs and questions
(:func:`assyllm.evaluate.paired_bootstrap`). All numbers are measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from assyllm.evaluate import paired_bootstrap
from assyllm.results import read_table, write_table

SAMPLES, LEVEL = 5000, 0.95
COLUMNS = ("task", "zoos", "method", "seeds", "questions", "accuracy", "assyllm_above", "low", "high", "source")
Run = tuple[str, str]  # zoo, seed


def compared(task: str, zoos: list[str], method: str, runs: dict[str, dict[Run, np.ndarray]]) -> dict[str, Any]:
    """The row of one method on some zoos; differences where it is another than `assyllm`."""
    mine, ours = runs[method], runs["assyllm"]
    both = [run for run in mine if run in ours and run[0] in zoos]
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    row |= {
        "task": task, "zoos": " ".join(zoos), "method": method, "seeds": " ".join(sorted({seed for _, seed in both})),
        "questions": len(mine[both[0]]), "accuracy": float(np.mean([mine[run] for run in both])), "source": "measured",
    }  # fmt: skip
    if method == "assyllm":
        return row
    names = [str(n) for n in range(row["questions"])]
    mean, low, high = paired_bootstrap([ours[run] - mine[run] for run in both], names, SAMPLES, LEVEL)
    return row | {"assyllm_above": mean, "low": low, "high": high}


def main() -> None:
    """Read the hits, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hits", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found: dict[str, dict[str, dict[Run, np.ndarray]]] = {}
    for row in read_table(options.hits):
        runs = found.setdefault(row["task"], {}).setdefault(row["method"], {})
        runs[row["pretrain_seed"], row["seed"]] = np.array([int(hit) for hit in row["hits"]])
    table = []
    for task, runs in found.items():
        each = sorted({zoo for zoo, _ in runs["assyllm"]}, key=int)
        for zoos in (*([zoo] for zoo in each), each):
            known = [method for method, own in runs.items() if any(zoo in zoos for zoo, _ in own)]
            table += [compared(task, zoos, method, runs) for method in known]
    write_table(options.out, table, columns=COLUMNS)


if __name__ == "__main__":
    main()
