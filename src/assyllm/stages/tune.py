"""Stage ``tune``: a baseline's settings by grid search, judged on the development split only."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

from assyllm import params as P
from assyllm.artifacts import verify_folder
from assyllm.results import write_table

SECTIONS = ("tasks", "partition", "federated", "baselines", "frozen_base", "fleet", "tune")
CODE = ("params/names.py", "params/baselines.py")  # beside what is imported (study.code_sha)
COLUMNS = (
    "task", "method", "model", "place", "server_rate", "local_epochs", "smoothed_dev", "dev_accuracy", "best_round",
    "end_dev", "rounds", "batch", "learning_rate", "optimizer", "head_factor", "server", "seed", "source",
)  # fmt: skip
CHEAPER = ("local_epochs", "best_round", "learning_rate", "server_rate")  # what a tie goes by


def run(
    params: str,
    code_sha: str,
    method: str,
    zoo: Path,
    tasks: Path,
    partition: Path,
    cost: Path,
    out: Path,
) -> None:
    """Write the grid's development accuracies per task, best first; the test split is never scored.

    The grid is ``tune.rates`` x ``tune.local_epochs`` at ``tune.seed``; all else, rounds too, is the method's
    own. A point is worth the maximum of its smoothed curve, so that a rate whose runs fall apart does not win by one
    lucky round; a tie goes to the cheaper setting (fewer epochs, earlier best round).
    """
    import torch

    from assyllm.baselines.job import encode_task, open_base, plan, read_task
    from assyllm.baselines.registry import METHODS
    from assyllm.baselines.rounds import Diverged, Outcome, run_rounds
    from assyllm.evaluate import smoothed
    from assyllm.federated.cohort import device_memory, eligible_clients

    torch.set_num_threads(1)
    p = P.parse_sections(params, SECTIONS)
    for folder in (tasks, partition):
        verify_folder(folder)
    seed = p.tune.seed
    model, tokenizer = open_base(zoo / p.baselines.model, method, p.frozen_base, p.tasks.lengths)
    memory = device_memory(seed, p.fleet, p.partition.clients)
    eligible = eligible_clients(cost, method, p.baselines.model, memory)
    rows: list[dict[str, Any]] = []
    for task in p.tasks.names:
        files = read_task(tasks, partition, task, p.partition)
        files.splits["test"] = []
        kept = getattr(p.baselines, method)[task]
        data, _ = encode_task(files, tokenizer, METHODS[method](model, kept), p.tasks.max_tokens[task])
        found, tried = [], []
        for rate, epochs in itertools.product(p.tune.rates, p.tune.local_epochs):
            tuning = kept.at(rate, epochs)
            if tuning in tried:  # a method whose clients make one step has no epochs
                continue
            tried.append(tuning)
            settings = plan(tuning, p.federated, p.baselines)
            outcome = Outcome(best_dev=0.0, rounds=[{"dev": 0.0}])  # what a setting that diverges is worth
            with contextlib.suppress(Diverged):
                _, outcome = run_rounds(METHODS[method](model, tuning), data, settings, seed, eligible)
            curve = [row["dev"] for row in outcome.rounds if "dev" in row]
            smooth = float(smoothed(curve).max())
            print(f"{task} {rate:g} x {epochs}: dev {outcome.best_dev:.3f}, smoothed {smooth:.3f}", flush=True)
            found.append(
                {
                    "task": task,
                    "method": method,
                    "model": p.baselines.model,
                    "smoothed_dev": smooth,
                    "dev_accuracy": outcome.best_dev,
                    "end_dev": curve[-1],
                    "best_round": outcome.best_round,
                    **tuning.model_dump(),
                    "seed": seed,
                    "source": "measured",
                }
            )
        found.sort(key=lambda row: (-row["smoothed_dev"], *(row[cheap] for cheap in CHEAPER)))
        rows += [{c: row[c] for c in COLUMNS if c in row} | {"place": i} for i, row in enumerate(found, start=1)]
    write_table(out, rows, columns=COLUMNS)
