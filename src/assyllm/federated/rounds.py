"""The round loop of the methods that assemble blocks; a checkpoint a round.

First rounds choose blocks: one after another (:mod:`voting` as the paper does, :mod:`probing` by what a block adds
to a head), or all from one survey (:mod:`surveying`). Then adapters may be trained (:mod:`tuning`). Last come rounds in
which cohorts send the head's statistics, until every client has been heard once, at most ``head.rounds``: all finished
models get theirs, so that the figure of assembled models can be drawn; the traffic counted is the reported one's.

A round's data are its cohort's alone. All functions are deterministic: clients in ascending order, sums in
float64, scores rounded before they are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from assyllm.adapter.sent import ID
from assyllm.artifacts import ArtifactError
from assyllm.assembly import search
from assyllm.assembly.head import accuracy, fit_on_dev
from assyllm.assembly.search import Chain
from assyllm.assembly.walk import edges
from assyllm.blocks.pool import Pool
from assyllm.comparator.compatibility import Rule
from assyllm.federated import probing, surveying, tuning, voting
from assyllm.federated.context import Context, Settings
from assyllm.federated.data import TaskData
from assyllm.federated.simulate import CohortHeadSums, head_totals, refusals
from assyllm.federated.state import State
from assyllm.federated.witness import Witness

Save = Callable[[State], None]


class Rounds(Context):
    """One task's run. :meth:`step` makes one round; everything it needs from earlier ones is in the state."""

    def __init__(
        self, pool: Pool, data: TaskData, settings: Settings, seed: int, eligible: Sequence[int], zoo_seed: int = 0
    ) -> None:
        super().__init__(pool, data, settings, seed, eligible, zoo_seed)
        self.judged: dict[str, dict[str, Tensor]] = {}  # model -> dev and test -> its features, where they are needed

    def run(self, state: State | None = None, save: Save | None = None, report: Save | None = None) -> State:
        """All rounds from ``state`` (a fresh one if None); ``save`` is called after each."""
        state = State() if state is None else state
        self.joins.use(state.joined)
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
        if self.settings.rule.survey and state.phase == "native":
            state = surveying.start(self, state)
        if state.phase == "survey":
            return surveying.survey(self, state)
        if state.phase == "head":
            return self._head(state)
        if state.phase == "tune":
            return tuning.tune(self, state, reported(state, self.settings.rule).blocks)
        if self.settings.rule.by_labels:
            return probing.select(self, probing.start(state) if state.phase == "native" else state)
        return voting.native(self, state) if state.phase == "native" else voting.select(self, state)

    def _head(self, state: State) -> State:
        clients, late, last = self.turn(state)
        limits = {chain.id: self.limits.head(self._read(chain)) for chain in state.finished}
        sums: dict[str, CohortHeadSums] = {}
        if clients:
            cohort = self.cohort(state, clients)
            for chain in sorted(state.finished, key=lambda c: c.id):
                features = cohort.features(chain.blocks)
                sums[chain.id] = CohortHeadSums.of(cohort, features, limit=limits[chain.id])
                cohort.walker.forget(chain.blocks)
        totals, refused = head_totals(sums, self.liars, self.settings.federated.least_clients)
        state.dropped += refusals(state.round, refused)
        chains = {chain.id: chain for chain in state.finished}
        state.heads = heads = self.believed(state, totals, state.heads, lambda name: self._witness(state, chains[name]))
        judged: dict[str, Any] = {}
        rule = self.settings.rule
        if rule.by_labels and (rule.one_model or rule.random) and heads:  # a control is the best of its kind
            told = {chain.id: self._evaluate(state, chain) for chain in state.finished}
            state.best = max(sorted(told), key=lambda name: told[name]["dev"])
            judged = told[state.best]
        best = reported(state, rule)
        sent = heads.get(best.id) or sums.get(best.id)
        up = sent.bytes if sent is not None else 0
        own = [state.joined[name] for name in edges(best.blocks)]
        down = ID * len(best.blocks) + sum(a.sent_bytes for a in own if a is not None)
        self.log(state, clients, late, up_sums=up, down=down)
        answered = {*clients, *late}
        state.rows[-1]["passing"] = len(answered - set(state.surveyed)) / max(1, len(answered))
        if best.id in heads or self.settings.federated.check_sums:
            state.rows[-1] |= judged or self._evaluate(state, best)
        if last:
            if not heads and not self.settings.federated.check_sums:
                said = [row["why"] for row in state.dropped if row["round"] == state.round]
                why = f"every answer was refused ({said[0]})" if said else "no client answered"
                raise ArtifactError(f"{self.data.task}: {why} in the head's rounds, so no model was made")
            state.phase = "done"
        return state

    def _read(self, chain: Chain) -> tuple[str, ...]:
        """The blocks that the head reads."""
        return chain.blocks if self.settings.head.scope == "all_blocks" else chain.blocks[-1:]

    def _evaluate(self, state: State, chain: Chain) -> dict[str, Any]:
        """A finished model so far: mean squared error on the sums, accuracies with the ridge best on dev."""
        model, chosen = self.pool.info(chain.blocks[0]).model, self.settings.head
        dev, test = (self.data.encoded(self.pool, model, split) for split in ("dev", "test"))
        features, sums = self._features(state, chain), state.heads.get(chain.id)
        if self.settings.federated.check_sums:
            witness = self._witness(state, chain)
            (head, _, on_dev), sums = witness.fit(sums), witness.pooled(sums)
        else:
            assert sums is not None
            head, _, on_dev = fit_on_dev(sums, chosen.ridge_grid, features["dev"], dev.choice_mask, dev.answer)
        on_test = accuracy(head, features["test"], test.choice_mask, test.answer)
        return {"loss": sums.loss(head), "loss_unit": "squared error", "dev": on_dev, "test": on_test}

    def _features(self, state: State, chain: Chain) -> dict[str, Tensor]:
        """Split -> the features that a finished model's head reads."""
        chosen = self.settings.head
        if chain.id not in self.judged:
            self.judged[chain.id] = {
                split: self.walker(state, split).features(chain.blocks, chosen.scope, chosen.sketch_dims)
                for split in ("dev", "test")
            }
        return self.judged[chain.id]

    def _witness(self, state: State, chain: Chain) -> Witness:
        return self.witness(chain.id, lambda: self._features(state, chain)["dev"])


def reported(state: State, rule: Rule) -> Chain:
    """The model that a run reports: ``state.best``, or else the finished one of highest worth, ties by id.

    Worth is the mean compatibility of its joins (no labels), or of chains that are probed, the sum of their gains.
    """
    ranked = search.ranked(state.finished, adding=rule.by_labels)
    return next((chain for chain in ranked if chain.id == state.best), ranked[0])
