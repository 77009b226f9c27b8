"""Choosing all blocks from one survey: what a device sends, what the server reads off the total, the controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from assyllm.artifacts import ArtifactError
from assyllm.assembly import depths
from assyllm.assembly.assembled import AssembledModel
from assyllm.assembly.head import HeadSums
from assyllm.assembly.walk import Walker
from assyllm.federated import surveying
from assyllm.federated.outcome import assemble, outcome
from assyllm.federated.rounds import Rounds, reported
from assyllm.federated.state import State
from assyllm.federated.walk_table import walk_rows
from tiny.rounds import rounds, summary


def surveying_run(scored, selection: dict | None = None, **changes) -> Rounds:
    return rounds(scored, method="assyllm", selection={"max_blocks": 4} | (selection or {}), **changes)


def prefixes(run: Rounds, chain: Sequence[str]) -> bool:
    """Whether a chain is some models one after the other, each from its first block on."""
    return all(run.pool.before(b) in ((None, a) if a else (None,)) for a, b in zip([None, *chain], chain, strict=False))


def test_every_client_is_surveyed_once_and_the_total_is_the_sum_of_what_each_sends(scored) -> None:
    run, state = surveying_run(scored), State()
    cohorts, totals = [], []
    while state.phase in ("native", "survey"):
        state = run.step(state)
        totals.append(state.survey)
        cohorts.append(state.rows[-1]["participants"])
    assert state.phase == "head"
    assert state.survey is None
    assert sum(cohorts) == len(run.eligible)
    clients = run.eligible
    whole = run.cohort(State(), clients)
    task = surveying.survey_task(run, State(round=1))
    assert [len(blocks) for blocks in task.models] == [len(run.pool.of_model(model)) for model in run.pool.models]
    each = [surveying.survey_step(task, whole.view(client)) for client in clients]
    expected = sum(each[1:], start=each[0])
    first = run.turn(State(round=1, phase="survey"))[0]
    part = [sums for client, sums in zip(clients, each, strict=True) if client in first]
    for a, b in zip(totals[0].parts(), sum(part[1:], start=part[0]).parts(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)
    assert float(expected.questions) == sum(len(run.data.owned[client]) for client in clients)


def test_a_part_of_the_survey_is_a_survey_of_that_part() -> None:
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(50, 3, 9, generator=generator), torch.ones(50, 3, dtype=torch.bool)
    answer = x[..., 2].argmax(-1)
    some = torch.tensor([1, 2, 7])
    for a, b in zip(
        HeadSums.of(x, mask, answer).of_columns(some).parts(), HeadSums.of(x[..., some], mask, answer).parts(),
        strict=True,
    ):  # fmt: skip
        assert torch.allclose(a, b)


def test_the_chosen_set_is_the_best_of_all_or_near(scored) -> None:
    """Held against every set of at most four blocks; and with room for everything nothing is left that would add."""
    run, state = surveying_run(scored), State()
    while (after := run.step(state)).phase == "survey":
        state = after
    clients, _, _ = run.turn(State(round=state.round + 1, phase="survey", rows=state.rows))
    cohort = run.cohort(state, clients)
    task = surveying.survey_task(run, state)
    total = state.survey + HeadSums.of(
        cohort.surveyed(task.models, task.dims), cohort.real, cohort.answer, limit=task.limit
    )
    columns = surveying._columns(run, task.models)

    def worth(found: depths.Depths) -> float:
        index = torch.cat([columns[block] for block in surveying._blocks(task.models, found)])
        return total.of_columns(index).evidence(run.settings.head.ridge_grid)[0]

    every = [found for found in product(*(range(len(m) + 1) for m in task.models)) if 0 < sum(found) <= 4]
    best = max(worth(found) for found in every)
    [chosen] = after.finished
    mine = worth(tuple(len(set(blocks) & set(chosen.blocks)) for blocks in task.models))
    assert mine == pytest.approx(sum(chosen.scores), abs=5e-4)
    assert mine > best - 0.03 * abs(best)
    assert mine >= max(worth(found) for found in every if sum(found) == 1)


def test_depths_are_grown_changed_and_end(scored) -> None:
    """A first block that tells nothing is passed over, and what was taken first may go again."""
    value = {(0, 2): 3.0, (2, 0): 2.0, (1, 0): 1.9, (1, 1): 2.0, (0, 1): 0.1, (2, 1): 2.1, (1, 2): 4.0, (2, 2): 4.05}
    assert depths.best([2, 2], 2, lambda found: value[found]) == (0, 2)
    assert depths.best([2, 2], 3, lambda found: value[found]) == (1, 2)
    assert depths.best([2, 2], 9, lambda found: value[found]) == (2, 2)
    assert depths.best([4, 4], 9, lambda found: -0.1) == (1, 0), "one is always taken, and no more where nothing tells"
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert sum(depths.drawn([2, 3, 1], 4, rng)) == 4
    assert depths.drawn([2, 3, 1], 9, rng) == (2, 3, 1)


def test_blocks_stand_in_their_own_context_and_the_model_is_saved_and_read(scored, tmp_path) -> None:
    run = surveying_run(scored)
    state = run.run()
    best = reported(state, run.settings.rule)
    assert prefixes(run, best.blocks)
    assert all(adapter is None for adapter in state.joined.values())
    rows = [row for row in state.rows if row["phase"] == "survey"]
    assert all(row["bytes_up_sums"] > 0 == row["bytes_up_votes"] for row in rows)
    assert all(row["bytes_down"] == 2 * len(run.pool.ids) for row in rows)
    features = run.walker(state, "test").features(best.blocks, "all_blocks", run.settings.head.sketch_dims)
    at = 0
    for i, block in enumerate(best.blocks):
        if run.pool.info(block).kind == "start":
            own = [b for b in best.blocks[i:] if run.pool.info(b).model == run.pool.info(block).model]
            native = Walker(run.pool, run.walker(state, "test").readings, {}).features(
                own, "all_blocks", run.settings.head.sketch_dims
            )
            assert torch.equal(features[..., at : at + native.shape[-1]], native)
            at += native.shape[-1]
    assert at == features.shape[-1]
    found = outcome(run.pool, run.data, run.settings, state, run.judged)
    assemble(run.pool, found, run.settings, "abc", {"run": "test"}).save_pretrained(tmp_path / "model")
    again = AssembledModel.from_pretrained(tmp_path / "model")
    assert torch.allclose(again.features(again.encode(run.data.splits["test"])), features, atol=1e-5)


def test_who_was_surveyed_passes_nothing_in_the_rounds_of_the_head(scored) -> None:
    for stragglers in (0.0, 0.4):
        run = surveying_run(scored, {"survey_rounds": 1}, head={"rounds": 40}, federated={"stragglers": stragglers})
        state, shares = State(), []
        while state.phase != "done":
            before, state = state, run.step(state)
            if state.rows[-1]["phase"] == "head":
                clients, late, _ = run.turn(replace(before, round=before.round + 1))
                new = {*clients, *late} - set(state.surveyed)
                shares.append(len(new) / max(1, len({*clients, *late})))
        assert [row["passing"] for row in state.rows if row["phase"] == "head"] == shares
        assert 0 < sum(shares) < len(shares), "some were surveyed, some were not"
        walked = walk_rows("run", "piqa", run.pool, state, run.settings.rule)
        assert {row["passing"] for row in walked if row["phase"] == "survey"} == {1}
        assert [row["passing"] for row in walked if row["phase"] == "head"] == [
            row["passing"] for row in state.rows if row["phase"] == "head" and row["participants"]
        ]


def test_cohorts_of_survey_and_head_are_not_the_same_but_for_one(scored) -> None:
    """Else a client's sums could be had by subtraction where some drop out."""
    run = surveying_run(scored, head={"rounds": 40}, federated={"clients_per_round": 12})
    run.eligible = list(range(200))
    near = 0
    for seed in range(10):
        run.seed = seed
        cohorts = {}
        for phase in ("survey", "head"):
            turns, last = [], False
            while not last:
                rows = [{"phase": phase}] * len(turns)
                clients, _, last = run.turn(State(round=len(turns) + 1, phase=phase, rows=rows))
                turns.append(set(clients))
            cohorts[phase] = turns
        near += sum(len(a ^ b) <= 4 for a in cohorts["survey"] for b in cohorts["head"])
    assert near == 0


def test_liars_move_a_survey(scored) -> None:
    found = []
    for federated in ({}, {"liars": 0.4, "lie": "sums"}):
        run = surveying_run(scored, federated=federated)
        found.append(run.step(run.step(State())).survey)
    assert not torch.equal(found[0].xy, found[1].xy)
    assert float(found[1].questions) > 10 * float(found[0].questions)


def test_a_survey_resumes_after_any_round(scored) -> None:
    kept: list[tuple] = []
    whole = surveying_run(scored).run(save=lambda state: kept.append(state.dump()))
    for tensors, raw in kept[:-1]:
        assert summary(surveying_run(scored).run(State.load(tensors, raw))) == summary(whole)


def test_the_seed_of_the_cohorts_changes_no_choice(scored) -> None:
    """Everybody is heard, so that only the order of a sum is left to chance."""
    one = surveying_run(scored)
    other = Rounds(one.pool, one.data, one.settings, 7, one.eligible)
    assert [c.blocks for c in one.run().finished] == [c.blocks for c in other.run().finished]


def test_a_survey_is_of_as_many_answers_as_so_many_whole_cohorts_would_give(scored) -> None:
    for rounds_, dropout, least in ((1, 0.0, 5), (2, 0.0, 10), (1, 0.5, 5), (None, 0.0, 12)):
        run = surveying_run(scored, {"survey_rounds": rounds_}, federated={"dropout": dropout}, head={"rounds": 40})
        heard = [row["participants"] for row in run.run().rows if row["phase"] == "survey"]
        assert least <= sum(heard) <= len(run.eligible)
        assert sum(heard[:-1]) < least, "nobody is asked who is not needed"


@pytest.mark.parametrize("rule", ["survey_random", "survey_one_model"])
def test_controls_ask_nobody_which_blocks(scored, rule) -> None:
    run = surveying_run(scored, {"rule": rule})
    state = run.run()
    assert {row["phase"] for row in state.rows} == {"head"}
    assert all(prefixes(run, chain.blocks) for chain in state.finished)
    if rule == "survey_random":
        [chain] = state.finished
        assert len(chain.blocks) == 4
        for names in ([(seed, 0) for seed in range(6)], [(0, zoo) for zoo in range(6)]):  # another zoo, another draw
            again = [Rounds(run.pool, run.data, run.settings, seed, run.eligible, zoo) for seed, zoo in names]
            assert len({one.run().finished[0].id for one in again}) > 1
    else:
        whole = {tuple(info.id for info in run.pool.of_model(model)) for model in run.pool.models}
        assert {chain.blocks for chain in state.finished} == whole
    told = {chain.id: run._evaluate(state, chain)["dev"] for chain in state.finished}
    assert told[reported(state, run.settings.rule).id] == max(told.values())


def test_those_that_drop_out_are_asked_again_and_a_survey_that_nobody_answers_ends(scored) -> None:
    run = surveying_run(scored, federated={"dropout": 0.5}, head={"rounds": 40})
    rows = [row for row in run.run().rows if row["phase"] == "survey"]
    assert len(rows) > 3
    assert len(run.eligible) - 1 <= sum(row["participants"] for row in rows) <= len(run.eligible)
    silent = surveying_run(scored, federated={"dropout": 0.99})
    with pytest.raises(ArtifactError, match="piqa: no client answered"):
        silent.run()
