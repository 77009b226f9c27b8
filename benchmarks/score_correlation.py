"""Does a score tell which assembly will be accurate? Rank correlation over random assemblies (paper section 3.2).

    snakemake --cores 2 data/scores/base/zoo0_seed0/shard0     (what it reads; in the folder of the study)
    python benchmarks/score_correlation.py --assemblies 32 --out benchmarks/score_correlation.csv

For each task: random chains of 2 to 8 blocks (any block may follow, natural continuations too), joined and given a
closed-form head as each of the two methods does it: `assyllm` (adapters that read the text again, a head on all blocks)
and `assyllm_paper` before its adapters are trained (projections, a head on the last block). Scores of a chain, of which
none sees the test split: means over its joins of native CKA, native COR and their half-and-half mix, the same mix with
CKA in the assembled context, its number of blocks and of models, and the summed evidence of its blocks on the labels.
All clients count. Spearman's rank correlation with test accuracy, with a 95 % interval over the assemblies (bootstrap).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from assyllm import seeding
from assyllm.adapter.reading import readings
from assyllm.assembly.head import HeadSums, accuracy, fit_on_dev
from assyllm.assembly.walk import Walker, edges
from assyllm.blocks.pool import Pool
from assyllm.comparator import compatibility as by
from assyllm.comparator.cka import paired_terms
from assyllm.comparator.native import NativeTable
from assyllm.federated.context import Settings
from assyllm.federated.data import TaskData
from assyllm.federated.joins import Joins
from assyllm.federated.task import open_task
from assyllm.params import parse_sections
from assyllm.quantizer.pool import open_pool
from assyllm.results import write_table
from assyllm.stages.federate import SECTIONS
from assyllm.study import Plan
from assyllm.zoo.encoding import combine

METHODS = ("assyllm", "assyllm_paper")
SCORES = ("cka", "cor", "compatibility", "assembled", "evidence", "blocks", "models")
COLUMNS = (
    "method",
    "task",
    "score",
    "spearman",
    "low",
    "high",
    "assemblies",
    "accuracy_low",
    "accuracy_high",
    "source",
)


@dataclass(frozen=True)
class Scored:
    """A random assembly: its scores by name, and its accuracy on the test split."""

    scores: dict[str, float]
    accuracy: float


def chains(pool: Pool, task: str, number: int) -> list[tuple[str, ...]]:
    """``number`` different random chains of 2 to 8 blocks."""
    draw, rule = seeding.rng("score correlation", task), by.rule("probe")
    found: dict[tuple[str, ...], None] = {}
    while len(found) < number:
        chain: tuple[str, ...] = ()
        for _ in range(draw.integers(2, 9)):
            chain = (*chain, str(draw.choice(by.eligible(pool, chain, rule))))
        found[chain] = None
    return list(found)


def walked(pool: Pool, data: TaskData, joins: Joins, chain: tuple[str, ...]) -> dict[str, Walker]:
    """Walkers of a chain over the three splits, its joins fitted on public text."""
    joined: dict[str, Any] = {}
    for i, name in enumerate(edges(chain), start=1):
        joins.use(joined)
        joined[name] = joins.scoring(chain[:i], chain[i])
    joins.use(joined)

    def walker(split: str) -> Walker:
        return Walker(pool, readings(pool, lambda model: data.encoded(pool, model, split)), joined)

    return {split: walker(split) for split in ("train", "dev", "test")}


def evidence(parts: Sequence[Tensor], mask: Tensor, answer: Tensor, grid: Sequence[float]) -> float:
    """Nats a row by which a chain's blocks, one after the other, make the labels more probable."""
    explained, total = torch.zeros(mask.shape, dtype=torch.float64), 0.0
    for features in parts:
        gain, head = HeadSums.of(features, mask, answer, explained).evidence(grid)
        explained = explained + features.double() @ head.weight.double()
        total += max(0.0, gain)
    return total


def scored(
    pool: Pool, data: TaskData, settings: Settings, joins: Joins, table: NativeTable, chain: tuple[str, ...]
) -> Scored:
    """Join a chain, fit its head on all clients' questions, and judge it."""
    walkers, head = walked(pool, data, joins, chain), settings.head
    first = next(iter(pool.models))
    train, dev, test = (data.encoded(pool, first, split) for split in ("train", "dev", "test"))
    owned = torch.tensor(sorted(item for items in data.owned for item in items))
    mask, answer = train.choice_mask[owned], train.answer[owned]
    links = list(pairwise(chain))
    cka = [table.cka(a, b) for a, b in links]
    cor = [table.cor(a, b) for a, b in links]
    assembled = []
    for i, block in enumerate(chain[1:], start=2):
        x = combine(walkers["train"].vectors(chain[:i])[owned]) * data.public.scale[block]
        y = combine(data.native[block][owned]) * data.public.scale[block]
        assembled.append(float(paired_terms(x[mask][None], y[mask][None], 32, "unbiased").cka()[0]))
    parts = [combine(walkers["train"].vectors(chain[: i + 1])[owned]) for i in range(len(chain))]
    features = torch.cat(parts if head.scope == "all_blocks" else parts[-1:], -1)
    found, _, _ = fit_on_dev(
        HeadSums.of(features, mask, answer), head.ridge_grid,
        walkers["dev"].features(chain, head.scope), dev.choice_mask, dev.answer,
    )  # fmt: skip
    known = [value if value is not None else 0.0 for value in cka]
    scores = {
        "cka": float(np.mean(known)),
        "cor": float(np.mean(cor)),
        "compatibility": float(np.mean([(a + b) / 2 for a, b in zip(known, cor, strict=True)])),
        "assembled": float(np.mean([(a + b) / 2 for a, b in zip(assembled, cor, strict=True)])),
        "evidence": evidence(parts, mask, answer, head.ridge_grid),
        "blocks": float(len(chain)),
        "models": float(len({pool.info(block).model for block in chain})),
    }
    return Scored(scores, accuracy(found, walkers["test"].features(chain, head.scope), test.choice_mask, test.answer))


def correlation(found: Sequence[Scored], score: str, samples: int = 2000) -> tuple[float, float, float]:
    """Spearman's correlation of a score with accuracy, and its 95 % interval."""
    pairs = np.array([(each.scores[score], each.accuracy) for each in found])
    draw = seeding.rng("score correlation", "bootstrap", score)
    drawn = [pairs[draw.integers(0, len(pairs), len(pairs))] for _ in range(samples)]
    values = [spearmanr(*sample.T).statistic for sample in drawn if len(set(sample[:, 0])) > 1]
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(spearmanr(*pairs.T).statistic), float(low), float(high)


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assemblies", type=int, default=32)
    parser.add_argument("--zoo", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/score_correlation.csv"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    plan, folder = Plan(), Path("data")
    pool = open_pool(folder / f"quantized/base/zoo{given.zoo}")
    scores = [folder / f"scores/base/zoo{given.zoo}_seed{given.seed}/shard0"]
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        p = parse_sections(plan.sections("federate", "base", method), SECTIONS)
        own = p.assembling.of(method)
        adapter = untrained(own.adapter)
        settings = Settings(own.selection, p.comparator, adapter, own.head, p.federated)
        for task in p.tasks.names:
            tasks, partition = folder / "tasks/base", folder / f"partition/base/seed{given.seed}"
            data = open_task(pool, task, p, tasks, partition, scores)
            table = NativeTable(pool, pool.ids, data.hsic.sum(0), {b: h.sum(0) for b, h in data.histograms.items()})
            joins = Joins(pool, data, adapter)
            found = []
            with torch.no_grad():
                for chain in chains(pool, task, given.assemblies):
                    found.append(scored(pool, data, settings, joins, table, chain))
                    print(f"{method} {task} {len(found)}: {found[-1].accuracy:.3f}", flush=True)
            judged = [each.accuracy for each in found]
            for score in SCORES:
                rho, low, high = correlation(found, score)
                rows.append(
                    {"method": method, "task": task, "score": score, "spearman": rho, "low": low, "high": high,
                     "assemblies": len(found), "accuracy_low": min(judged), "accuracy_high": max(judged),
                     "source": "measured"}
                )  # fmt: skip
                print(f"{method} {task} {score}: {rho:.2f} ({low:.2f} to {high:.2f})", flush=True)
    write_table(given.out, rows, COLUMNS)


def untrained(adapter: Any) -> Any:
    """The method's adapter before any training: a projection stands for an attention that starts as one."""
    return adapter.model_copy(update={"tuning": "none"})


if __name__ == "__main__":
    main()
