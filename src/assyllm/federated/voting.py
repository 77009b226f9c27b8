"""Choosing blocks as the paper does: by compatibility and vote (paper sections 3.1 and 3.2).

1. ``native`` (one round): a cohort sends the sums of what does not depend on any chain; shortlists and COR come
   from them.
2. ``select`` (``rounds_per_block`` rounds for each place in the chain, some more where no vote came in): a cohort
   evaluates the shortlisted blocks on every chain of the beam, votes, and sends the adapters' statistics; the server
   stacks the winners.
"""

from __future__ import annotations

from dataclasses import asdict

from assyllm.adapter.sent import ID, NUMBER
from assyllm.artifacts import ArtifactError
from assyllm.assembly import search
from assyllm.assembly.walk import edge, edges
from assyllm.comparator import compatibility as by
from assyllm.comparator.cka import MINIMUM_ROWS
from assyllm.comparator.native import NativeTable
from assyllm.federated.context import SPARE, Context
from assyllm.federated.messages import ScoreTask
from assyllm.federated.server import Tally, decide, server_step
from assyllm.federated.simulate import score_cohort
from assyllm.federated.state import State
from assyllm.swapper.walks import walk


def native(run: Context, state: State) -> State:
    """The first round: what blocks are like in their own models."""
    clients, late = run.sample(state.round)
    blocks = run.data.blocks
    hsic = run.data.hsic[clients].sum(0)
    bins = sum(run.data.histograms[block][0].size for block in blocks)
    up = NUMBER * (len(blocks) * (len(blocks) + 1) // 2 + bins)
    run.log(state, clients, late, **({"up_sums": up, "down": ID} if clients or late else {}))
    if state.round <= SPARE and not hsic.any():
        return state  # a whole cohort lost, or too few examples for CKA: ask the next one
    if not clients:
        raise ArtifactError(
            f"{run.data.task}: no cohort told anything in {state.round} rounds, so nothing was assembled"
        )
    state.hsic = hsic
    state.histograms = {b: run.data.histograms[b][clients].sum(0) for b in blocks}
    state.open, state.phase = search.roots(run.pool), "select"
    return state


def select(run: Context, state: State) -> State:
    """A round of voting on the candidates of every open chain."""
    task = score_task(run, state)
    run.pool.expect(walk(list(task.candidates.items()), "candidate"))
    clients, late = run.sample(state.round)
    cohort = run.cohort(state, clients)
    replies = run.liars.replies(task, score_cohort(task, cohort))
    state.tally, dropped = server_step(state.tally, task, replies)
    state.dropped += [asdict(entry) for entry in dropped]
    votes = sum(reply.vote_bytes for reply in replies) / max(1, len(replies))
    sums = sum(reply.sum_bytes for reply in replies) / max(1, len(replies))
    run.log(state, clients, late, up_votes=votes, up_sums=sums, down=task.bytes)
    state.rows[-1]["walk"] = [[list(chain), list(blocks)] for chain, blocks in task.candidates.items()]
    state.tried += 1
    asked, rounds = any(task.candidates.values()), run.settings.selection.rounds_per_block
    if run.decided(state, bool(state.tally.votes), asked, rounds):
        return _stack(run, state, task)
    return state


def score_task(run: Context, state: State) -> ScoreTask:
    """What the clients are asked: shortlists, their COR, adapters to try them with."""
    chosen, weight, rule = run.settings.selection, run.settings.weight, run.settings.rule
    assert state.hsic is not None
    table = NativeTable(run.pool, run.data.blocks, state.hsic, state.histograms)
    candidates: dict[tuple[str, ...], tuple[str, ...]] = {}
    cor: dict[tuple[str, str], float] = {}
    random: dict[tuple[str, str], float] = {}
    count = len(run.data.blocks) if chosen.evaluated_per_round is None else chosen.evaluated_per_round
    for chain in state.open:
        drawn = {b: by.random_score(run.seed, run.data.task, chain.blocks, b) for b in run.data.blocks}

        def score(last: str, block: str, drawn: dict[str, float] = drawn) -> float | None:
            return drawn[block] if rule.random else table.score(last, block, weight)

        listed = search.shortlist(run.pool, chain, rule, score, count)
        candidates[chain.blocks] = tuple(listed)
        cor |= {(chain.id, b): table.cor(chain.blocks[-1], b) for b in listed}
        random |= {(chain.id, b): drawn[b] for b in listed} if rule.random else {}
    pairs = [(chain, block) for chain, blocks in candidates.items() for block in blocks]
    tried = {("+".join(chain), block): run.joins.scoring(chain, block) for chain, block in pairs}
    adapted = {
        ("+".join(chain), block): (run.pool.info(chain[-1]).width, run.pool.info(block).width)
        for chain, block in pairs
        if tried["+".join(chain), block] is not None and run.joins.from_clients
    }
    own = {name: state.joined[name] for chain in candidates for name in edges(chain)}
    return ScoreTask(
        round=state.round,
        candidates=candidates,
        cor=cor,
        kept=chosen.kept_per_round,
        weight=weight,
        batch=run.settings.comparator.cka_batch,
        estimator=run.settings.comparator.estimator,
        adapter_bytes=sum(a.sent_bytes for a in [*tried.values(), *own.values()] if a is not None),
        random=random,
        vote=chosen.vote,
        limits={(c.id, b): run.limits.join(c.blocks[-1], b) for c in state.open for b in candidates[c.blocks]},
        adapted=adapted,
        most=run.limits.examples,
        least=run.settings.federated.least_clients,
    )


def _stack(run: Context, state: State, task: ScoreTask) -> State:
    """The end of a place's rounds: winners, their adapters refitted, the beam for the next place."""
    chosen = run.settings.selection
    winners = decide(state.tally, task)
    joined = dict(state.joined)
    chains = {chain.id: chain for chain in state.open}
    for name, found in winners.items():
        for block, _ in found:
            given = state.tally.adapter.get((name, block))
            joined[edge(chains[name].blocks, block)] = run.joins.refit(chains[name].blocks, block, given)
            family = run.pool.info(block).family
            state.chosen = state.chosen | {family: state.chosen.get(family, 0) + 1}
    still, finished = search.grow(run.pool, state.open, winners, chosen.beam, chosen.max_blocks)
    state.finished = [*state.finished, *finished]
    state.keep(still, joined)
    run.joins.use(state.joined)
    state.tally, state.tried = Tally(), 0
    if not still:
        if not state.finished:
            rule = run.settings.selection.rule
            why = "no vote was cast" if any(task.candidates.values()) else f"rule {rule} lets no block follow"
            if state.hsic is not None and not state.hsic.any():
                why = f"CKA needs {MINIMUM_ROWS} examples (question, choice), which no client that was asked has "
                why += "(partition.items_per_client, partition.clients)"
            raise ArtifactError(f"{run.data.task}: {why}, so nothing was assembled")
        state.phase = run.after_search
    return state
