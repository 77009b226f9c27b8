"""``assyllm bench scoring``: what the prefix cache saves, and what scoring costs beside the model's own passes.

The paper's pool in small: 28 blocks of five models of unlike widths (random weights: passes are counted and timed,
not judged), five start blocks as roots, a fresh cohort of 20 clients for every place of a chain of L blocks.

Without the cache a candidate at place l costs l block passes, with it one, and the cohort's prefixes once:
``work_saved_over_bound`` is (mean passes without / mean passes with, over the places 1 .. L) / ((L + 1) / 2) when
clients walk the whole pool, ``_shortlist`` the same when they evaluate three blocks a chain (the default), where
prefixes weigh more. That bound, (L + 1) / 2, leaves the prefixes out, and a fresh cohort has to compute them: with c
candidates a chain and no prefix in common place l costs 1 + (l - 1) / c passes a candidate, so that the reachable share
of the bound is c / (c + (L - 1) / 2), .55 with three. Chains that share prefixes make it a little more:
``reachable_over_bound_shortlist`` counts every distinct prefix of a place's chains once, the least that a fresh cohort
can do, and ``work_saved_over_reachable_shortlist`` is what the cache saves of that.

``overhead_ms_per_client``: time of a client's step outside block passes and adapters, a client and round, with the
shortlist, by the paper's rule; ``server_ms_per_round``: the server's part. ``probe_overhead_ms_per_client``: the same
by the rule ``probe`` on the same candidates, the secure sum included. Times are the thread's own, so that a busy
machine counts less.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assyllm import params, seeding
from assyllm.adapter.base import Adapter
from assyllm.adapter.limit import Limit
from assyllm.adapter.linear import LinearAdapter
from assyllm.adapter.reading import Readings
from assyllm.assembly import search
from assyllm.assembly.walk import Walker, edge, edges
from assyllm.bench.record import Record
from assyllm.blocks.families import family as family_of
from assyllm.blocks.pool import BlockInfo, ModelInfo, Pool
from assyllm.blocks.split import split
from assyllm.comparator import compatibility as by
from assyllm.comparator.activations import native
from assyllm.comparator.public import Public
from assyllm.federated.data import Cohort, TaskData
from assyllm.federated.liars import Liars
from assyllm.federated.messages import ProbeTask, ScoreTask
from assyllm.federated.server import Tally, decide, server_step
from assyllm.federated.simulate import head_totals, probe_cohort, score_cohort
from assyllm.zoo.architecture import language_model
from assyllm.zoo.encoding import Encoded

MEMBERS = {  # family, layers (one block each), width, heads: the paper's 6/6/6/4/6 blocks
    "llama": ("llama", 6, 64, 4), "vicuna": ("llama", 6, 64, 4), "opt": ("opt", 6, 72, 6),
    "bert": ("bert", 4, 48, 4), "roberta": ("roberta", 6, 56, 4),
}  # fmt: skip
PLACES = 6  # L, blocks of a chain (selection.max_blocks)
KEPT, BEAM, SHORTLIST = 2, 4, 3  # as in params.yaml
COHORT, OWNED, CHOICES, TOKENS = 20, 4, 2, 24  # clients, questions of each, choices, tokens a row
VOCABULARY = 100
FIRST = "llama"  # all models read the same random tokens
LIMIT = Limit(x=1e6, y=10.0, rows=4000.0, examples=1000.0, choices=4000.0)  # no honest client reaches it
HONEST = params.Federated(
    clients_per_round=COHORT, dropout=0, stragglers=0, liars=0, lie="sums", row_norm=None, max_examples=None
)


def run(rounds: int = 3) -> Record:
    """Every ratio once a round."""
    torch.set_num_threads(1)
    pool, found = RandomPool(), []
    for number in range(rounds):
        data = task_data(pool, number)
        whole = walk(pool, data, len(pool.ids))
        few = walk(pool, data, SHORTLIST)
        found.append({
            "work_saved_over_bound": whole["saved"] / ((PLACES + 1) / 2),
            "work_saved_over_bound_shortlist": few["saved"] / ((PLACES + 1) / 2),
            "reachable_over_bound_shortlist": few["reachable"] / ((PLACES + 1) / 2),
            "work_saved_over_reachable_shortlist": few["saved"] / few["reachable"],
            "overhead_ms_per_client": few["overhead_ms"],
            "server_ms_per_round": few["server_ms"],
            "probe_overhead_ms_per_client": few["probe_ms"],
        })  # fmt: skip
    return Record.of("scoring", found)


class RandomPool(Pool):
    """28 blocks of five small models with random weights, in memory."""

    def __init__(self) -> None:
        self._blocks, self._infos, self.models = {}, {}, {}
        self.folder, self.lender = Path("random pool"), None
        for name, (family, layers, width, heads) in MEMBERS.items():
            torch.manual_seed(seeding.seed_for("bench scoring", name))
            spec = family_of(family)
            sizes = {"ffn_dim": 4 * width, "word_embed_proj_dim": width} if family == "opt" else {}
            config = spec.config(
                {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
                 "intermediate_size": 4 * width, "vocab_size": VOCABULARY, "max_position_embeddings": 64, **sizes}
            )  # fmt: skip
            config._attn_implementation = "sdpa"
            model = language_model(config).eval()
            self.models[name] = ModelInfo(name, family, name, "MIT", "", width, layers)
            for block in split(model, name, family, [1] * layers):
                self._blocks[block.id] = block.requires_grad_(False)
                self._infos[block.id] = BlockInfo(
                    block.id, name, family, block.kind, block.layers, width, spec.architecture.causal, "", 0, 0, 32, 0
                )


class TimedWalker(Walker):
    """A walker that knows how long blocks and adapters took."""

    seconds = 0.0
    _depth = 0

    def _timed(self, call: Any, *arguments: Any) -> Any:
        self._depth += 1
        began = time.thread_time()
        try:
            return call(*arguments)
        finally:
            self._depth -= 1
            self.seconds += (time.thread_time() - began) * (self._depth == 0)

    def states(self, chain: Sequence[str]) -> list[Tensor]:
        return self._timed(super().states, chain)

    def extend(self, chain: Sequence[str], block: str, adapter: Adapter | None) -> list[Tensor]:
        return self._timed(super().extend, chain, block, adapter)


def rows(number: int, name: str, seed: int) -> Encoded:
    """``number`` questions of random tokens and lengths; the last two tokens of a row are its choice."""
    draw = seeding.rng("bench scoring", name, seed)
    shape = (number, CHOICES, TOKENS)
    lengths = draw.integers(TOKENS // 2, TOKENS + 1, size=shape[:2])
    place = np.arange(TOKENS)
    mask = place < lengths[..., None]
    chosen = mask & (place >= lengths[..., None] - 2)
    slot = place == lengths[..., None] - 3
    return Encoded(
        ids=torch.from_numpy(draw.integers(5, VOCABULARY, size=shape)),
        mask=torch.from_numpy(mask),
        chosen=torch.from_numpy(chosen),
        spans=torch.from_numpy(np.stack([place, place + 1], axis=-1) + np.zeros((*shape[:2], 1, 1), dtype=np.int64)),
        pools=torch.from_numpy(np.stack([slot, chosen / 2], axis=-2).astype(np.float32)),
        choice_mask=torch.ones(shape[:2], dtype=torch.bool),
        answer=torch.from_numpy(draw.integers(0, CHOICES, size=number)),
    )


def task_data(pool: Pool, seed: int) -> TaskData:
    """A fresh cohort's questions for every place, and the native states of every block on them."""
    clients = COHORT * PLACES
    encoded = rows(clients * OWNED, "train", seed)
    states: dict[str, Tensor] = {}
    histograms: dict[str, np.ndarray] = {}
    for model in pool.models:
        found = native(pool, model, encoded)
        states |= found.pooled
        histograms |= found.histograms
    ones = {block: torch.ones(2 * s.shape[-1]) for block, s in states.items()}
    data = TaskData(
        task="bench", max_tokens=TOKENS, splits={}, blocks=pool.ids, native=states, hsic=np.zeros(0),
        owned=[range(c * OWNED, (c + 1) * OWNED) for c in range(clients)], histograms=histograms,
        public=Public(states, ones, {}), public_questions=(),
    )  # fmt: skip
    pool._reads_as = {model: model for model in pool.models}
    data._encoded = {(model, "train"): encoded for model in pool.models}
    return data


class RandomAdapters(dict[str, "Adapter | None"]):
    """Edge -> an adapter of the right widths with seeded weights, made at its first use."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool

    def __missing__(self, name: str) -> Adapter | None:
        before, _, block = name.rpartition(">")
        last = before.split("+")[-1]
        if self._pool.before(block) == last:
            self[name] = None
        else:
            d, e = self._pool.info(last).width, self._pool.info(block).width
            generator = torch.Generator().manual_seed(seeding.seed_for("bench scoring", name))
            self[name] = LinearAdapter(torch.randn(d, e, generator=generator) / d**0.5, torch.zeros(e))
        return self[name]

    def scoring(self, chain: tuple[str, ...], block: str) -> Adapter | None:
        """The adapter that a candidate is tried with: the one that it keeps; None for a chain's first block."""
        return self[edge(chain, block)] if chain else None


def walk(pool: Pool, data: TaskData, evaluated: int) -> dict[str, float]:
    """Choose the blocks of places 2 .. L; passes saved, the most that could be, and milliseconds beside the passes."""
    adapters = RandomAdapters(pool)
    head = params.Head(scope="last_block", ridge_grid=[1.0], rounds=1)
    rule = by.rule("paper_distinct")
    chains = search.roots(pool)
    without, used, least = [1.0], [1.0], [1.0]  # place 1: a start block is one pass either way
    overhead, server, probe = [], [], []
    for place in range(2, PLACES + 1):
        candidates = {c.blocks: _some(by.eligible(pool, c.blocks, rule), evaluated) for c in chains}
        pairs = [(chain, block) for chain, blocks in candidates.items() for block in blocks]
        task = ScoreTask(
            round=place, candidates=candidates, cor={("+".join(c), b): 0.5 for c, b in pairs}, kept=KEPT, weight=0.5,
            batch=32, estimator="unbiased", adapter_bytes=0,
            adapted={
                ("+".join(c), b): (pool.info(c[-1]).width, pool.info(b).width)
                for c, b in pairs
                if pool.before(b) != c[-1]
            },
        )  # fmt: skip
        walkers: list[TimedWalker] = []

        def walker(items: Sequence[int], walkers: list[TimedWalker] = walkers) -> Walker:
            encoded = data.encoded(pool, FIRST, "train")[list(items)]
            readings = Readings(lambda model: encoded, pool.embedding, FIRST, lambda model: FIRST)
            walkers.append(TimedWalker(pool, readings, adapters))
            return walkers[-1]

        clients = range((place - 1) * COHORT, place * COHORT)
        for blocks, names in candidates.items():  # adapters exist before the clock starts
            _ = [adapters[name] for name in (*edges(blocks), *(edge(blocks, b) for b in names))]
        cohort = Cohort(pool, data, clients, walker, adapters, head)
        began = time.thread_time()
        replies = score_cohort(task, cohort)
        stepped = time.thread_time()
        tally, _ = server_step(Tally(), task, replies)
        winners = decide(tally, task)
        server.append(time.thread_time() - stepped)
        overhead.append((stepped - began - sum(w.seconds for w in walkers)) / COHORT)
        passes = sum(w.passes for w in walkers)
        heads = {"+".join(chain): torch.zeros(2 * pool.info(chain[-1]).width) for chain in candidates}
        probing = ProbeTask(place, candidates, heads, 0, limits=dict.fromkeys(task.cor, LIMIT))
        timed, cohort = len(walkers), Cohort(pool, data, clients, walker, adapters, head)
        began = time.thread_time()
        head_totals(probe_cohort(probing, cohort), Liars(0, 0, HONEST))
        probe.append((time.thread_time() - began - sum(w.seconds for w in walkers[timed:])) / COHORT)
        without.append(float(np.mean([len(chain) + 1 for chain, _ in pairs])))
        used.append(passes / len(pairs))
        least.append(1 + len({chain[:i] for chain, _ in pairs for i in range(1, len(chain) + 1)}) / len(pairs))
        chains, _ = search.grow(pool, chains, winners, BEAM, PLACES + 1)
    times = {"overhead_ms": overhead, "server_ms": server, "probe_ms": probe}
    milliseconds = {name: 1e3 * float(np.median(seconds)) for name, seconds in times.items()}
    return {"saved": sum(without) / sum(used), "reachable": sum(without) / sum(least)} | milliseconds


def _some(blocks: list[str], count: int) -> tuple[str, ...]:
    """At most ``count`` blocks, evenly out of all, so that a shortlist holds several models' blocks."""
    return tuple(blocks[:: max(1, len(blocks) // count)][:count])
