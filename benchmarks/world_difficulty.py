"""How hard the generated tasks are for methods that assemble nothing: the study that froze the world's knobs.

For one setting of `world` and `tasks`, measures full fine-tuning of each given model on all clients' data, the
best model again on a tenth of the clients, its shape from scratch, and zero-shot likelihood. Learning rates are
chosen on the development split. Block assembling is never run here. Example:

    python benchmarks/world_difficulty.py --zoo data/zoo/base/seed0 --set world.held_out=0.3 --seeds 0 1
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from assyllm import params as P
from assyllm import seeding
from assyllm.baselines.full import FullFineTuning
from assyllm.baselines.local import Local
from assyllm.baselines.method import Data
from assyllm.baselines.rounds import Outcome, Plan, run_rounds
from assyllm.baselines.zero_shot import answer
from assyllm.tasks import synthetic
from assyllm.tasks.partition import partition
from assyllm.tasks.record import Question
from assyllm.tasks.world import World
from assyllm.zoo.encoding import encode
from assyllm.zoo.families import family
from assyllm.zoo.forward import is_causal, pack
from assyllm.zoo.load import load_model, load_tokenizer

COLUMNS = ("knobs", "seed", "task", "model", "method", "optimizer", "rate", "dev", "test", "seen", "unseen", "round")
Splits = dict[str, list[Question]]


def right(chosen: list[int], questions: list[Question]) -> dict[str, float]:
    """Accuracy on all, seen and unseen test items."""
    hits = np.array([c == q.answer for c, q in zip(chosen, questions, strict=True)])
    unseen = np.array([q.id.startswith("unseen_") for q in questions])
    return {"test": hits.mean(), "seen": hits[~unseen].mean(), "unseen": hits[unseen].mean()}


def tune(model: Any, data: Data, eligible: list[int], args: argparse.Namespace, seed: int) -> tuple[float, Outcome]:
    """The best learning rate on dev and its run."""
    runs = []
    for rate in args.rates:
        local = Local(rate, args.local_epochs, 16, args.optimizer, args.head_factor)
        plan = Plan(args.rounds, args.clients_per_round, args.every, local)
        _, outcome = run_rounds(FullFineTuning(model), data, plan, seed, eligible)
        runs.append((rate, outcome))
    return max(runs, key=lambda run: run[1].best_dev)


def measure(name: str, task: str, splits: Splits, p: P.Params, args: argparse.Namespace, seed: int) -> list[dict]:
    """Rows of one model on one task."""
    folder = args.zoo / name
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    rows = []
    if "zero_shot" in args.methods:
        found = answer(model, tokenizer, splits["dev"], splits["test"], p.tasks.max_tokens[task])
        on_dev = float(np.mean([c == q.answer for c, q in zip(found.dev, splits["dev"], strict=True)]))
        rows.append({"method": "zero_shot", "dev": on_dev} | right(found.test.tolist(), splits["test"]))
    encoded = {s: pack(encode(tokenizer, q, p.tasks.max_tokens[task]), is_causal(model)) for s, q in splits.items()}
    owners = partition(splits["train"], task, p.partition.clients, p.partition.alpha, p.partition.by, seed)
    owned = [np.flatnonzero(owners == client).tolist() for client in range(p.partition.clients)]
    data = Data(encoded["train"], encoded["dev"], encoded["test"], owned)
    everyone = list(range(p.partition.clients))
    few = seeding.rng("difficulty", seed).permutation(everyone)[: len(everyone) // 10].tolist()
    fresh = family(model.config.model_type).build(model.config, seeding.seed_for("scratch", seed))
    cases = {"all": (model, everyone), "tenth": (model, few), "scratch": (fresh, everyone)}
    for method in (m for m in cases if m in args.methods):
        rate, outcome = tune(cases[method][0], data, cases[method][1], args, seed)
        row = {"method": method, "rate": rate, "dev": outcome.best_dev, "round": outcome.best_round}
        rows.append(row | right(outcome.test_chosen, splits["test"]))
    return rows


def main() -> None:
    """Measure and print one CSV row per seed, task, model and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--zoo", type=Path, required=True, help="folder of the zoo's members")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="knobs, e.g. world.held_out=0.3")
    parser.add_argument("--models", nargs="*", default=["llama"])
    parser.add_argument("--tasks", nargs="*")
    parser.add_argument("--methods", nargs="*", default=["zero_shot", "all", "tenth", "scratch"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--rates", nargs="*", type=float, default=[0.001, 0.003])
    parser.add_argument("--optimizer", default="adamw", choices=["sgd", "momentum", "adamw"])
    parser.add_argument("--head-factor", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--local-epochs", type=int, default=5)
    parser.add_argument("--clients-per-round", type=int, default=20)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--out", type=Path, help="append the rows to this CSV file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    raw = P.read_yaml(args.params)
    raw["settings"]["study"] = {key: yaml.safe_load(value) for key, value in (pair.split("=") for pair in args.set)}
    p = P.with_setting(raw, "study")
    world = World.build(p.world)
    handle = open(args.out, "a", newline="") if args.out else sys.stdout  # noqa: SIM115
    writer = csv.DictWriter(handle, COLUMNS, restval="")
    if handle.tell() == 0 if args.out else True:
        writer.writeheader()
    for seed in args.seeds:
        tasks = synthetic.build(world, p.tasks, p.world, p.world.seed)
        for task in args.tasks or p.tasks.names:
            for name in args.models:
                for row in measure(name, task, tasks[task], p, args, seed):
                    row |= {"knobs": json.dumps(raw["settings"]["study"]), "seed": seed, "task": task, "model": name}
                    row |= {"optimizer": args.optimizer}
                    writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
                    handle.flush()


if __name__ == "__main__":
    main()
