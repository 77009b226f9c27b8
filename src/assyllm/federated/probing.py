"""Choosing blocks by what they add to a head on the labels: the rule ``probe``, forward passes only.

For every candidate on every chain of the beam a cohort sends the head's statistics of the candidate's pooled
states against what the chain's own head leaves unexplained; they add up over clients. The server fits a ridge
probe to each total and stacks the candidates of greatest evidence: how much more probable they make the labels
(:meth:`HeadSums.evidence`). A chain's head grows with it, probe by probe, as in matching pursuit (Mallat 1993).
So a block counts by what it knows that the chain does not: the natural continuation and a twin of the last
block, most compatible by CKA, win only where they add something.

The candidates of a place race (successive halving, Jamieson and Talwalkar 2016): of those that one cohort was asked of
the share ``selection.survivors`` that leads on the sums so far is what the next one is asked of, so that devices spend
little on blocks that are far behind after one cohort.

A block of a model that the chain holds nothing of enters with the blocks before it in its own model, the first of which
reads the text itself; what else may follow goes through an adapter (``selection.enter``: ``both``). Blocks that enter
together are probed by the last one's states, which are what it gives in its own model, and count by what it adds for
each block that the chain grows by.

A chain begins empty; its first candidates are the start blocks. The chains of the beam begin with different ones, so
that they stay different searches; every chain goes on to the depth limit. Of the finished ones that is reported, and
gets the head's rounds, whose probes answer most of the development split right: gains of chains with unlike starts do
not compare, since one that starts badly leaves more to be gained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from assyllm.adapter.sent import block_features
from assyllm.artifacts import ArtifactError
from assyllm.assembly import search
from assyllm.assembly.head import Head, HeadSums, accuracy
from assyllm.assembly.search import Chain
from assyllm.assembly.walk import edge, edges
from assyllm.comparator import compatibility as by
from assyllm.federated.context import Context
from assyllm.federated.data import ClientView
from assyllm.federated.messages import ProbeTask
from assyllm.federated.simulate import head_totals, probe_cohort, refusals
from assyllm.federated.state import State
from assyllm.swapper.walks import passed, walk

Key = tuple[str, str]  # chain id, block


def start(state: State) -> State:
    """The state before the first round: one chain without blocks."""
    state.open, state.phase = [Chain(())], "select"
    return state


def select(run: Context, state: State) -> State:
    """A round of probing the candidates of every open chain."""
    task = probe_task(run, state)
    run.pool.expect(walk(passed(task.candidates.items()), "candidate"))
    clients, late = run.sample(state.round)
    cohort = run.cohort(state, clients)
    probed = {} if task.random else probe_cohort(task, cohort)
    totals, refused = head_totals(probed, run.liars, run.settings.federated.least_clients)
    state.dropped += refusals(state.round, refused)
    for key, sums in totals.items():
        state.probed[key] = state.probed[key] + sums if key in state.probed else sums
    up = sum(part.bytes for part in probed.values())
    run.log(state, clients, late, up_sums=up, down=task.bytes)
    state.rows[-1]["walk"] = [[list(chain), list(blocks)] for chain, blocks in task.candidates.items()]
    state.tried += 1
    asked, rounds = any(task.candidates.values()), run.settings.selection.rounds_per_block
    if run.decided(state, bool(state.probed or task.random), asked, rounds):
        return _stack(run, state, task)
    return state


def probe_task(run: Context, state: State) -> ProbeTask:
    """What the clients are asked: candidates, the chains' heads, adapters to try them with."""
    rule = run.settings.rule
    limit = None if rule.one_model else run.settings.selection.evaluated_per_round
    candidates: dict[tuple[str, ...], tuple[str, ...]] = {}
    random: dict[Key, float] = {}
    for chain in state.open:
        found = _candidates(run, chain)
        if limit is not None or rule.random:
            drawn = {b: by.random_score(run.seed, run.data.task, chain.blocks, b) for b in found}
            found = by.best(drawn, limit or len(found))
            random |= {(chain.id, b): drawn[b] for b in found} if rule.random else {}
        candidates[chain.blocks] = tuple(_racing(run, state, chain, found))
    tried = [run.joins.scoring(chain, block) for chain, blocks in candidates.items() for block in blocks]
    own = [state.joined[name] for chain in candidates for name in edges(chain)]
    return ProbeTask(
        round=state.round,
        candidates=candidates,
        heads={chain.id: state.probes[chain.id] for chain in state.open if chain.blocks},
        adapter_bytes=sum(adapter.sent_bytes for adapter in [*tried, *own] if adapter is not None),
        random=random,
        limits={(c.id, b): run.limits.probe(by.blocks_of(b)[-1]) for c in state.open for b in candidates[c.blocks]},
    )


def _candidates(run: Context, chain: Chain) -> list[str]:
    """What may follow a chain: a whole model's next block in the control, else what ``selection.enter`` says.

    Where blocks enter with those before them, single ones are the natural continuation and, under ``both``, through an
    adapter, those of models that the chain holds already.
    """
    chosen, rule = run.settings.selection, run.settings.rule
    found = by.eligible(run.pool, chain.blocks, rule)
    if chosen.enter == "adapter" or rule.one_model:
        return found
    entering = by.entering(run.pool, chain.blocks, chosen.max_blocks - len(chain.blocks))
    if not chain.blocks:
        return entering
    held = {run.pool.info(block).model for block in chain.blocks} if chosen.enter == "both" else set()
    follow = [b for b in found if run.pool.before(b) == chain.blocks[-1] or run.pool.info(b).model in held]
    return [*follow, *entering]


def _a_block(probed: Mapping[str, tuple[float, Head]]) -> dict[str, float | None]:
    """By candidate the gain in evidence for each block that the chain grows by."""
    return {name: gain / len(by.blocks_of(name)) for name, (gain, _) in probed.items()}


def _racing(run: Context, state: State, chain: Chain, found: list[str]) -> list[str]:
    """Which of a chain's candidates ``found`` this round's cohort is asked of, in their order.

    Where not all of a cohort answered, candidates leave the more slowly; as many stay as may be stacked, and of a
    chain's first ones as many that begin with different blocks.
    """
    chosen, rule = run.settings.selection, run.settings.rule
    if not state.tried or rule.random or rule.one_model:
        return found
    asked = next(blocks for blocks_of, blocks in state.rows[-1]["walk"] if tuple(blocks_of) == chain.blocks)
    left = max(chosen.kept_per_round, math.ceil(len(found) * chosen.survivors ** run.cohorts(state)))
    told = {b: state.probed[chain.id, b] for b in asked if (chain.id, b) in state.probed}
    if left >= len(asked) or not told:
        return asked
    grid = run.settings.head.ridge_grid
    order = by.best(_a_block({name: sums.evidence(grid) for name, sums in told.items()}), len(told))
    apart = [] if chain.blocks else _begin_apart(order)[: min(chosen.kept_per_round, chosen.beam)]
    leading = {*order[:left], *apart}
    return [block for block in asked if block in leading]


def probe_step(task: ProbeTask, data: ClientView) -> dict[Key, HeadSums]:
    """A client's statistics of every candidate (what a device does: forward passes and a few products)."""
    sums: dict[Key, HeadSums] = {}
    for chain, blocks in task.candidates.items():
        name = "+".join(chain)
        explained = data.explained(chain, task.heads[name]) if chain else None
        for block in blocks:
            features = data.candidate(chain, block)
            sums[name, block] = HeadSums.of(
                features, data.choice_mask, data.answer, explained, task.limits.get((name, block))
            )
    return sums


def _stack(run: Context, state: State, task: ProbeTask) -> State:
    """The end of a place's rounds: the candidates that explain most, on the beam for the next place.

    Under the rule ``probe_one_model`` all start blocks go on: the control is whole models with the same head.
    """
    chosen, grid, whole = run.settings.selection, run.settings.head.ridge_grid, run.settings.rule.one_model
    found: list[Chain] = []
    joined, probes = dict(state.joined), dict(state.probes)
    for chain in state.open:
        asked = task.candidates[chain.blocks]  # of the last cohort: those that left the race are out
        told = {n: state.probed[chain.id, n].evidence(grid) for n in asked if (chain.id, n) in state.probed}
        scores = {n: task.random[chain.id, n] for n in asked} if task.random else _a_block(told)
        order = by.best(scores, len(scores))
        if not chain.blocks:  # the chains of the beam begin with different blocks
            order = _begin_apart(order)
        # means of chains of unlike lengths do not compare: of a chain that may grow by several blocks the first goes on
        kept = chosen.kept_per_round if chosen.enter == "adapter" or not chain.blocks else 1
        winners = order if whole else order[:kept]
        if not winners and chain.blocks:
            state.finished = [*state.finished, Chain(chain.blocks, chain.scores, "exhausted")]
        for name in winners:
            gain, head = (task.random[chain.id, name], None) if task.random else told[name]
            longer = _longer(chain, by.blocks_of(name), gain)
            found.append(longer)
            probes[longer.id] = _head(run, state.probes.get(chain.id), by.blocks_of(name), head)
            for i in range(len(chain.blocks), len(longer.blocks)):
                if i:
                    before, block = longer.blocks[:i], longer.blocks[i]
                    joined[edge(before, block)] = run.joins.scoring(before, block)
    best = search.apart(found, len(found) if whole else chosen.beam)
    for chain in best:
        family = run.pool.info(chain.blocks[-1]).family
        state.chosen = state.chosen | {family: state.chosen.get(family, 0) + 1}
    if not whole:
        deep = [chain for chain in best if len(chain.blocks) >= chosen.max_blocks]
        state.finished = [*state.finished, *(Chain(c.blocks, c.scores, "depth") for c in deep)]
        best = [chain for chain in best if chain not in deep]
    state.keep(best, joined)
    run.joins.use(state.joined)
    state.probes = {chain.id: probes[chain.id] for chain in [*best, *state.finished]}
    state.probed, state.tried = {}, 0
    if not best:
        if not state.finished:
            raise ArtifactError(f"{run.data.task}: no client answered, so nothing was assembled")
        state.phase = run.after_search
        state.best = "" if task.random else _best_on_dev(run, state)
    return state


def _begin_apart(order: list[str]) -> list[str]:
    """Of a first place's candidates, best first, the best of each start block."""
    found: dict[str, str] = {}
    for name in order:
        found.setdefault(by.blocks_of(name)[0], name)
    return list(found.values())


def _longer(chain: Chain, blocks: tuple[str, ...], gain: float) -> Chain:
    """The chain with more blocks; the gain is the last one's."""
    gains = (*[0.0] * (len(blocks) - 1), round(gain, by.DECIMALS))
    return Chain((*chain.blocks, *blocks), (*chain.scores, *gains))


def _head(run: Context, before: Tensor | None, blocks: tuple[str, ...], probe: Head | None) -> Tensor:
    """Weights ``[F]`` of a chain's head with the probe of its last block; the blocks that it entered with have none."""
    if probe is None:
        return torch.zeros(0)
    widths = (block_features(run.pool.info(block).width, run.settings.head.sketch_dims) for block in blocks[:-1])
    return torch.cat([torch.zeros(0) if before is None else before, torch.zeros(sum(widths)), probe.weight])


def _best_on_dev(run: Context, state: State) -> str:
    """The finished chain whose probes answer most of the development split right, the one of higher worth at a tie."""
    walker, head = run.walker(state, "dev"), run.settings.head
    dev = run.data.encoded(run.pool, next(iter(run.pool.models)), "dev")

    def right(chain: Chain) -> float:
        features = walker.features(chain.blocks, head.scope, head.sketch_dims)
        walker.forget(chain.blocks)
        return accuracy(Head(state.probes[chain.id]), features, dev.choice_mask, dev.answer)

    return max(search.ranked(state.finished, adding=True), key=right).id
