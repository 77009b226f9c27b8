"""AssyLLM's round loop: native scores, then one block after another, then the head; a checkpoint a round.

1. ``native`` (one round): a cohort sends the sums of what does not depend on any chain; shortlists and COR come
   from them.
2. ``select`` (``selection.rounds_per_block`` rounds for each place in the chain): a cohort evaluates the
   shortlisted blocks on every chain of the beam, votes, and sends the adapters' statistics; the server stacks
   the winners.
3. ``head`` (``head.rounds`` rounds, no client twice): cohorts send the head's statistics. All finished models
   get theirs, so that the figure of assembled models can be drawn; the traffic counted is the reported one's.

A round's data are its cohort's alone. All functions are deterministic: clients in ascending order, sums in
float64, scores rounded before they are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from assyllm import params
from assyllm.adapter.linear import LinearAdapter, LinearSums
from assyllm.artifacts import ArtifactError
from assyllm.assembly import search
from assyllm.assembly.head import HeadSums, accuracy, fit_on_dev
from assyllm.assembly.search import Chain
from assyllm.assembly.walk import Walker, edge, edges
from assyllm.blocks.pool import Pool
from assyllm.comparator import compatibility as by
from assyllm.comparator.activations import rows_of
from assyllm.comparator.native import NativeTable
from assyllm.federated.client import client_step
from assyllm.federated.cohort import partitioned, sample
from assyllm.federated.data import Cohort, TaskData
from assyllm.federated.messages import ID, NUMBER, ScoreTask
from assyllm.federated.server import Tally, decide, server_step
from assyllm.federated.state import State

Save = Callable[[State], None]


@dataclass(frozen=True)
class Settings:
    """The sections that a run reads."""

    selection: params.Selection
    comparator: params.Comparator
    adapter: params.Adapter
    head: params.Head
    federated: params.Federated

    @property
    def weight(self) -> float:
        """w of the rule."""
        fixed = by.rule(self.selection.rule).cka_weight
        return self.comparator.cka_weight if fixed is None else fixed


class Rounds:
    """One task's run. :meth:`step` makes one round; everything it needs from earlier ones is in the state."""

    def __init__(self, pool: Pool, data: TaskData, settings: Settings, seed: int, eligible: Sequence[int]) -> None:
        self.pool, self.data, self.settings, self.seed = pool, data, settings, seed
        self.eligible = [client for client in eligible if len(data.owned[client])]
        if not self.eligible:
            raise ArtifactError(f"{data.task}: no client has both the memory and the data to take part")
        self._public: dict[str, Walker] = {}
        self._scoring: dict[str, LinearAdapter | None] = {}
        self._judged: dict[str, Tensor] = {}  # the reported model's features on dev and test

    def run(self, state: State | None = None, save: Save | None = None, report: Save | None = None) -> State:
        """All rounds from ``state`` (a fresh one if None); ``save`` is called after each."""
        state = State() if state is None else state
        while state.phase != "done":
            began = time.perf_counter()
            state = self.step(state)
            state.seconds.append(time.perf_counter() - began)
            if save:
                save(state)
            if report:
                report(state)
        return state

    def step(self, state: State) -> State:
        """One round."""
        state = replace(state, round=state.round + 1, rows=list(state.rows), dropped=list(state.dropped))
        return {"native": self._native, "select": self._select, "head": self._head}[state.phase](state)

    # -------------------------------------------------------------------------------------------- native

    def _native(self, state: State) -> State:
        clients = self._cohort(state.round)
        blocks = self.data.blocks
        if clients:
            state.hsic = self.data.hsic[clients].sum(0)
            state.histograms = {b: self.data.histograms[b][clients].sum(0) for b in blocks}
            bins = sum(counts.size for counts in state.histograms.values())
            up = NUMBER * (len(blocks) * (len(blocks) + 1) // 2 + bins)
            state.open, state.phase = search.roots(self.pool), "select"
            self._log(state, clients, up_sums=up, down=ID)
        else:  # a whole cohort lost: ask the next one
            self._log(state, clients)
        return state

    # -------------------------------------------------------------------------------------------- select

    def _select(self, state: State) -> State:
        task = self._task(state)
        clients = self._cohort(state.round)
        cohort = Cohort(self.pool, self.data, clients, self._walker(state), self._scoring_adapter(state))
        replies = [client_step(task, cohort.view(client)) for client in clients]
        state.tally, dropped = server_step(state.tally, task, replies)
        state.dropped += [asdict(entry) for entry in dropped]
        votes = sum(reply.vote_bytes for reply in replies) / max(1, len(replies))
        sums = sum(reply.sum_bytes for reply in replies) / max(1, len(replies))
        self._log(state, clients, up_votes=votes, up_sums=sums, down=task.bytes)
        state.tried += 1
        if state.tried < self.settings.selection.rounds_per_block:
            return state
        return self._stack(state, task)

    def _task(self, state: State) -> ScoreTask:
        chosen, weight = self.settings.selection, self.settings.weight
        rule = by.rule(chosen.rule)
        assert state.hsic is not None
        table = NativeTable(self.pool, self.data.blocks, state.hsic, state.histograms)
        candidates: dict[tuple[str, ...], tuple[str, ...]] = {}
        cor: dict[tuple[str, str], float] = {}
        random: dict[tuple[str, str], float] = {}
        for chain in state.open:
            drawn = {b: by.random_score(self.seed, self.data.task, chain.blocks, b) for b in self.data.blocks}

            def score(last: str, block: str, drawn: dict[str, float] = drawn) -> float | None:
                return drawn[block] if rule.random else table.score(last, block, weight)

            listed = search.shortlist(self.pool, chain, rule, score, chosen.evaluated_per_round)
            candidates[chain.blocks] = tuple(listed)
            cor |= {(chain.id, b): table.cor(chain.blocks[-1], b) for b in listed}
            random |= {(chain.id, b): drawn[b] for b in listed} if rule.random else {}
        scoring = self._scoring_adapter(state)
        tried = [scoring(chain, block) for chain, blocks in candidates.items() for block in blocks]
        own = {name: state.joined[name] for chain in candidates for name in edges(chain)}
        return ScoreTask(
            round=state.round,
            candidates=candidates,
            cor=cor,
            kept=chosen.kept_per_round,
            weight=weight,
            batch=self.settings.comparator.cka_batch,
            estimator=self.settings.comparator.estimator,
            adapter_bytes=sum(a.bytes for a in [*tried, *own.values()] if a is not None),
            random=random,
        )

    def _stack(self, state: State, task: ScoreTask) -> State:
        """The end of a place's rounds: winners, their adapters refitted, the beam for the next place."""
        chosen = self.settings.selection
        winners = decide(state.tally, task)
        joined = dict(state.joined)
        chains = {chain.id: chain for chain in state.open}
        for name, found in winners.items():
            for block, _ in found:
                joined[edge(chains[name].blocks, block)] = self._refit(state, chains[name], block)
                family = self.pool.info(block).family
                state.chosen = state.chosen | {family: state.chosen.get(family, 0) + 1}
        still, finished = search.grow(self.pool, state.open, winners, chosen.beam, chosen.max_blocks)
        state.finished = [*state.finished, *finished]
        needed = {name for chain in [*still, *state.finished] for name in edges(chain.blocks)}
        state.joined = {name: adapter for name, adapter in joined.items() if name in needed}
        state.open, state.tally, state.tried, state.stage = still, Tally(), 0, state.stage + 1
        self._scoring.clear()
        if not still:
            if not state.finished:
                raise ArtifactError(f"{self.data.task}: no vote was cast, so nothing was assembled")
            state.phase = "head"
        return state

    def _refit(self, state: State, chain: Chain, block: str) -> LinearAdapter | None:
        if self.pool.before(block) == chain.blocks[-1]:
            return None
        sums = self._public_sums(state, chain.blocks, block)
        given = state.tally.adapter.get((chain.id, block))
        return (sums if given is None else sums + given).fit(self.settings.adapter.ridge)

    def _public_sums(self, state: State, chain: tuple[str, ...], block: str) -> LinearSums:
        model = self.pool.info(chain[0]).model
        if model not in self._public:
            encoded = self.data.encoded(self.pool, model, "public")
            self._public[model] = Walker(self.pool, rows_of(encoded), state.joined)
        walker = self._public[model]
        walker.use(state.joined)
        before = self.pool.before(block)
        assert before is not None
        arriving, received = walker.vectors(chain), self.data.public.pooled[before]
        return LinearSums.of(arriving.flatten(0, 2), received.flatten(0, 2))

    def _scoring_adapter(self, state: State) -> Callable[[tuple[str, ...], str], LinearAdapter | None]:
        def scoring(chain: tuple[str, ...], block: str) -> LinearAdapter | None:
            if self.pool.before(block) == chain[-1]:
                return None
            name = edge(chain, block)
            if name not in self._scoring:
                sums = self._public_sums(state, chain, block)
                self._scoring[name] = sums.fit(self.settings.adapter.ridge)
            return self._scoring[name]

        return scoring

    # ---------------------------------------------------------------------------------------------- head

    def _head(self, state: State) -> State:
        start = self._first_head_round(state)
        planned = range(start, start + self.settings.head.rounds)
        federated = self.settings.federated
        clients = partitioned(
            self.seed, state.round, self.eligible, federated.clients_per_round, planned, federated.dropout
        )
        cohort = Cohort(self.pool, self.data, clients, self._walker(state), self._scoring_adapter(state))
        heads = dict(state.heads)
        for chain in sorted(state.finished, key=lambda c: c.id) if clients else ():
            walker = cohort.walker(chain.blocks)
            features = walker.features(chain.blocks, self.settings.head.scope)
            walker.forget(chain.blocks)
            answer = self.data.encoded(self.pool, self.pool.info(chain.blocks[0]).model, "train").answer[cohort.items]
            for client in clients:
                place = cohort.places[client]
                sums = HeadSums.of(features[place], cohort.real[place], answer[place])
                heads[chain.id] = heads[chain.id] + sums if chain.id in heads else sums
        state.heads = heads
        best = reported(state)
        up = heads[best.id].bytes if best.id in heads else 0
        own = [state.joined[name] for name in edges(best.blocks)]
        down = ID * len(best.blocks) + sum(a.bytes for a in own if a is not None)
        self._log(state, clients, up_sums=up, down=down, head=1)
        if best.id in heads:
            state.rows[-1] |= self._evaluate(state, best)
        if state.round == planned[-1]:
            if not heads:
                raise ArtifactError(f"{self.data.task}: no client answered in the head's rounds")
            state.phase = "done"
        return state

    def _evaluate(self, state: State, best: Chain) -> dict[str, float]:
        """The reported model so far: mean squared error on the sums, accuracies with the ridge best on dev."""
        model = self.pool.info(best.blocks[0]).model
        parts = {split: self.data.encoded(self.pool, model, split) for split in ("dev", "test")}
        if not self._judged:
            for split, part in parts.items():
                walker = Walker(self.pool, rows_of(part), state.joined)
                self._judged[split] = walker.features(best.blocks, self.settings.head.scope)
        dev, test = parts["dev"], parts["test"]
        sums = state.heads[best.id]
        grid, features = self.settings.head.ridge_grid, self._judged
        head, _, on_dev = fit_on_dev(sums, grid, features["dev"], dev.choice_mask, dev.answer)
        on_test = accuracy(head, features["test"], test.choice_mask, test.answer)
        return {"loss": sums.loss(head), "dev": on_dev, "test": on_test}

    def _first_head_round(self, state: State) -> int:
        done = sum(1 for row in state.rows if row["head"])
        return state.round - done

    # --------------------------------------------------------------------------------------------- common

    def _walker(self, state: State) -> Callable[[Sequence[int], str], Walker]:
        def make(items: Sequence[int], model: str) -> Walker:
            encoded = self.data.encoded(self.pool, model, "train")
            return Walker(self.pool, rows_of(encoded[list(items)]), state.joined)

        return make

    def _cohort(self, round_: int) -> list[int]:
        federated = self.settings.federated
        return sample(self.seed, round_, self.eligible, federated.clients_per_round, federated.dropout)

    def _log(
        self,
        state: State,
        clients: Sequence[int],
        up_votes: float = 0.0,
        up_sums: float = 0.0,
        down: float = 0.0,
        head: int = 0,
    ) -> None:
        row: dict[str, Any] = {
            "round": state.round,
            "phase": state.phase,
            "participants": len(clients),
            "bytes_up_votes": float(up_votes),
            "bytes_up_sums": float(up_sums),
            "bytes_up": float(up_votes + up_sums),
            "bytes_down": float(down),
            "head": head,
        }
        state.rows.append(row)


def reported(state: State) -> Chain:
    """The model that a run reports: the finished one of highest compatibility, ties by id (no labels)."""
    return search.ranked(state.finished)[0]
