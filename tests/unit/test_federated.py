"""Rounds: only the cohort counts, bad votes are dropped and named, order and interruptions change nothing."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from assyllm import params as P
from assyllm.adapter.linear import LinearSums
from assyllm.adapter.sent import block_features
from assyllm.artifacts import ArtifactError, verify_folder
from assyllm.assembly.assembled import AssembledModel
from assyllm.assembly.head import Head, HeadSums, accuracy
from assyllm.assembly.search import Chain
from assyllm.assembly.walk import Walker, edge
from assyllm.checkpoint import Checkpoint
from assyllm.comparator.cka import HsicTerms
from assyllm.comparator.compatibility import blocks_of
from assyllm.federated import probing
from assyllm.federated.cohort import device_memory, in_time, once_each, sample
from assyllm.federated.context import Settings
from assyllm.federated.messages import CandidateSums, ScoreReply, ScoreTask, Vote
from assyllm.federated.outcome import assemble, outcome
from assyllm.federated.rounds import Rounds, reported
from assyllm.federated.secure_sum import secure_sum
from assyllm.federated.server import Tally, decide, server_step
from assyllm.federated.state import State
from assyllm.federated.task import open_task
from assyllm.quantizer.pool import open_pool
from assyllm.results import Metric, Prediction, Run, check_columns, read_table, write_table
from assyllm.stages import federate, score
from assyllm.swapper.walks import read_walk
from conftest import tiny_params

CHAIN, NAME = ("a:0-1",), "a:0-1"
TASK = ScoreTask(round=1, candidates={CHAIN: ("b:1-2", "c:1-2", "d:1-2")}, kept=2, weight=1.0, batch=32,
                 cor={(NAME, b): 0.5 for b in ("b:1-2", "c:1-2", "d:1-2")}, estimator="unbiased",
                 adapter_bytes=0)  # fmt: skip


def reply(client: int, *votes: tuple[str, float], examples: int = 4, xy: float = 1.0) -> ScoreReply:
    terms = HsicTerms(np.array([xy]), np.array([2.0]), np.array([2.0]), examples)
    sums = {(NAME, block): CandidateSums(terms, None) for block in TASK.candidates[CHAIN]}
    return ScoreReply(client, 1, examples, tuple(Vote(NAME, block, value) for block, value in votes), sums)


def test_votes_weigh_compatibility_and_examples() -> None:
    replies = [reply(0, ("b:1-2", 0.9)), reply(1, ("c:1-2", 0.5)), reply(2, ("c:1-2", 0.5))]
    tally, dropped = server_step(Tally(), TASK, replies)
    assert not dropped
    assert [block for block, _ in decide(tally, TASK)[NAME]] == ["c:1-2", "b:1-2"]
    assert decide(tally, TASK)[NAME][0][1] == 0.5  # the pooled HSIC ratio, not a mean of what clients said
    heavy, _ = server_step(Tally(), TASK, [reply(0, ("b:1-2", 0.9), examples=40), *replies[1:]])
    assert decide(heavy, TASK)[NAME][0][0] == "b:1-2"


def test_bad_votes_are_dropped_and_named() -> None:
    nan, inf = float("nan"), float("inf")
    bad = [
        reply(0, ("b:1-2", nan)), reply(1, ("b:1-2", inf)), reply(2, ("z:1-2", 0.5)), reply(3, ("b:1-2", 1e6)),
        reply(4, ("b:1-2", 0.5), ("b:1-2", 0.5)), reply(5, ("b:1-2", 0.1), ("c:1-2", 0.1), ("d:1-2", 0.1)),
        reply(6), reply(7, ("d:1-2", 0.2)), reply(7, ("d:1-2", 0.2)), reply(8, ("b:1-2", 0.4), xy=nan),
    ]  # fmt: skip
    tally, dropped = server_step(Tally(), TASK, bad)
    why = {(d.client, d.why) for d in dropped}
    assert {(0, "score is not finite"), (1, "score is not finite"), (2, "unknown chain or block")} <= why
    assert {(3, "score out of range"), (4, "given twice"), (5, "more than 2 votes on a chain")} <= why
    assert {(6, "no vote on this chain"), (7, "a second reply"), (8, "sums that are not finite")} <= why
    assert tally.votes == {(NAME, "b:1-2"): 2, (NAME, "c:1-2"): 1, (NAME, "d:1-2"): 1}


def test_order_of_replies_changes_nothing() -> None:
    replies = [reply(i, ("b:1-2", 0.1 + i / 7), ("d:1-2", 0.3), xy=1 / (3 + i)) for i in range(9)]
    one, other = server_step(Tally(), TASK, replies)[0], server_step(Tally(), TASK, replies[::-1])[0]
    assert one.weight == other.weight
    assert {k: float(t.xy[0]) for k, t in one.hsic.items()} == {k: float(t.xy[0]) for k, t in other.hsic.items()}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_client_whose_sums_are_not_finite_is_left_out_whole(bad) -> None:
    sound = {"a": HeadSums(*(part + 1 for part in HeadSums.zeros(3).parts()))}
    broken = {
        "a": sound["a"],
        "b": HeadSums(sound["a"].xx.index_fill(0, torch.tensor(1), bad), *sound["a"].parts()[1:]),
    }
    totals, refused = secure_sum([(4, broken), (2, sound), (1, sound)])
    assert refused == {4: "sums that are not finite"}
    assert list(totals) == ["a"]
    assert torch.equal(totals["a"].xx, 2 * sound["a"].xx)
    assert secure_sum([(4, broken), (2, sound)], least=2) == ({}, {4: "sums that are not finite"})  # one is left


def test_a_round_in_which_one_client_is_left_counts_for_nothing() -> None:
    """Nineteen of twenty that send nonsense must not show the last one's statistics."""
    others = [reply(c, ("b:1-2", 0.9), xy=float("nan")) for c in range(1, 20)]
    task = replace(TASK, least=2)
    tally, dropped = server_step(Tally(), task, [reply(0, ("b:1-2", 0.9)), *others])
    assert (tally.votes, tally.hsic, tally.adapter) == ({}, {}, {})
    assert len(dropped) >= 19
    tally, _ = server_step(Tally(), task, [reply(0, ("b:1-2", 0.9)), reply(20, ("b:1-2", 0.9)), *others])
    assert tally.hsic[NAME, "b:1-2"].xy[0] == 2


def test_fleet_shares_are_exact_and_cohorts_are_reproducible() -> None:
    fleet = tiny_params().fleet
    devices = device_memory(3, fleet, 200)
    assert Counter(devices) == {64: 20, 32: 30, 16: 30, 8: 60, 4: 60}
    assert devices == device_memory(3, fleet, 200) != device_memory(4, fleet, 200)
    assert sum(Counter(device_memory(0, fleet, 7)).values()) == 7
    eligible = list(range(0, 90, 2))
    asked = sample(0, 5, eligible, 20)
    assert asked == sorted(asked)
    assert len(set(asked)) == 20
    assert set(sample(0, 5, eligible, 20, dropout=0.5)) < set(asked)


def test_rounds_of_sums_end_when_everybody_was_heard_once() -> None:
    eligible = list(range(0, 90, 2))
    asked: list[int] = []

    def counted(round_: int, answering: list[int]) -> tuple[list[int], list[int]]:
        asked.extend(answering)
        return in_time(0, round_, answering, 0.3)

    whole = once_each(0, range(7, 99), eligible, 20, 0.0, lambda _, answering: (list(answering), []))
    assert [len(clients) for clients, _ in whole] == [20, 20, 5]
    assert sorted(c for clients, _ in whole for c in clients) == eligible
    turns = once_each(0, range(7, 99), eligible, 20, 0.6, counted)
    assert 5 < len(turns) < 40
    assert sorted(c for clients, _ in turns for c in clients) == eligible  # whoever dropped out or was late came later
    assert sum(len(late) for _, late in turns) == len(asked) - len(eligible) > 0
    assert len(once_each(0, range(7, 10), eligible, 20, 0.9, counted)) == 3  # no more rounds than that
    assert once_each(0, range(7, 10), [], 20, 0.0, counted) == []


@pytest.fixture(scope="module")
def scored(tiny_folder):
    """Scores in one shard and in two, and the cost table."""
    p = tiny_params()
    where = (tiny_folder / "pool8", tiny_folder / "tasks", tiny_folder / "partition", 0)
    text = P.sections_json(p, score.SECTIONS)
    score.run(text, "code", *where, 0, tiny_folder / "scores")
    two = P.sections_json(tiny_params(comparator={"shards": 2}), score.SECTIONS)
    for shard in (0, 1):
        score.run(two, "code", *where, shard, tiny_folder / f"scores{shard}")
    everyone = [{"model": "pool", "memory_gb": gb, "participates": 1} for gb in p.fleet.memory_gb]
    write_table(tiny_folder / "cost.csv", everyone)
    return tiny_folder


def rounds(
    folder, task: str = "piqa", scores: tuple[str, ...] = ("scores",), method: str = "assyllm_paper", **changes
) -> Rounds:
    p = tiny_params(method, **changes)
    own = p.assembling.of(method)
    settings = Settings(own.selection, p.comparator, own.adapter, own.head, p.federated)
    pool = open_pool(folder / "pool8")
    data = open_task(pool, task, p, folder / "tasks", folder / "partition", [folder / s for s in scores])
    return Rounds(pool, data, settings, 0, range(12))


def summary(state: State) -> tuple:
    tensors, raw = state.dump()
    raw = {key: value for key, value in raw.items() if key != "seconds"}
    return raw, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_a_run_assembles_models_and_only_cohorts_contribute(scored) -> None:
    run = rounds(scored)
    state = run.run()
    assert state.finished
    assert all(len(chain.blocks) >= 2 for chain in state.finished)
    assert all(row["participants"] <= 5 for row in state.rows)
    assert sum(1 for row in state.rows if row["head"]) == 3
    assert all(row["bytes_up"] > 0 and row["bytes_down"] > 0 for row in state.rows)
    first = sample(0, 1, run.eligible, 5)
    np.testing.assert_array_equal(state.hsic, run.data.hsic[first].sum(0))
    for chain in state.finished:  # no natural continuation under paper_distinct
        for a, b in zip(chain.blocks, chain.blocks[1:], strict=False):
            assert run.pool.before(b) != a


def test_resuming_after_a_round_of_any_phase_changes_nothing(scored) -> None:
    states: list[tuple] = []
    whole = rounds(scored, selection={"rounds_per_block": 2, "max_blocks": 3}).run(
        save=lambda s: states.append(s.dump())
    )
    phases = [raw["phase"] for _, raw in states]
    last = {phase: i for i, phase in enumerate(phases)}  # of each phase
    chosen = {1, 2, *(phases.index(phase) + 1 for phase in last), *last.values()} & set(range(len(states) - 1))
    assert len(chosen) >= 4
    for tensors, raw in (states[i] for i in sorted(chosen)):
        again = rounds(scored, selection={"rounds_per_block": 2, "max_blocks": 3}).run(State.load(tensors, raw))
        assert summary(again) == summary(whole)


def test_shards_and_threads_do_not_change_the_selection(scored) -> None:
    def selected(threads: int, scores: tuple[str, ...]) -> list:
        run = rounds(scored, scores=scores, selection={"max_blocks": 2})
        torch.set_num_threads(threads)
        try:
            state = run.step(run.step(State()))
        finally:
            torch.set_num_threads(1)
        return [chain.blocks for chain in state.finished]

    assert selected(1, ("scores",)) == selected(1, ("scores1", "scores0")) == selected(2, ("scores",))
    with pytest.raises(ArtifactError, match="shards"):
        rounds(scored, scores=("scores1",))


@pytest.mark.parametrize("rule", ["probe", "probe_random", "probe_one_model"])
@pytest.mark.parametrize("kind", ["fixed_attention", "linear"])
def test_every_probing_rule_assembles(scored, rule, kind) -> None:
    selection = {"rule": rule, "max_blocks": 3, "rounds_per_block": 1, "enter": "adapter"}
    run = rounds(scored, method="assyllm", selection=selection, adapter={"kind": kind})
    state = run.run()
    best = reported(state, run.settings.rule)
    models = {block.split(":")[0] for block in best.blocks}
    if rule == "probe_one_model":
        assert len(models) == 1
        assert all(run.pool.before(b) == a for a, b in zip(best.blocks, best.blocks[1:], strict=False))
        deepest = {info.model: info.id for m in run.pool.models for info in run.pool.of_model(m)}
        assert {chain.blocks[-1] for chain in state.finished} == set(deepest.values()), "every model, to its end"
    else:
        assert len(best.blocks) == 3
    selecting = [row for row in state.rows if not row["head"] and row.get("walk") and any(b for _, b in row["walk"])]
    assert len(selecting) == max(len(chain.blocks) for chain in state.finished)
    assert all((row["bytes_up_sums"] > 0) == (rule != "probe_random") for row in selecting)
    assert all(row["bytes_up_votes"] == 0 for row in selecting)


def test_chains_begin_apart_go_to_the_end_and_dev_chooses(scored) -> None:
    changes = {"selection": {"max_blocks": 3, "rounds_per_block": 1, "beam": 2, "kept_per_round": 2}}
    run = rounds(scored, method="assyllm", **changes)
    state = run.run()
    assert [chain.ended for chain in state.finished] == ["depth", "depth"]
    assert len({chain.blocks[0] for chain in state.finished}) == 2
    dev = run.data.encoded(run.pool, next(iter(run.pool.models)), "dev")
    right = {}
    for chain in state.finished:
        features = run.walker(state, "dev").features(chain.blocks, "all_blocks", run.settings.head.sketch_dims)
        right[chain.id] = accuracy(Head(state.probes[chain.id]), features, dev.choice_mask, dev.answer)
    assert right[reported(state, run.settings.rule).id] == max(right.values())
    state.best = min(right, key=lambda name: (right[name], name))
    assert outcome(run.pool, run.data, run.settings, state).reported.chain.id == state.best


def test_the_best_whole_model_is_that_of_its_rounds(scored) -> None:
    changes = {"selection": {"rule": "probe_one_model", "max_blocks": 4, "rounds_per_block": 1}}
    run = rounds(scored, method="assyllm", **changes)
    found = outcome(run.pool, run.data, run.settings, run.run(), run.judged)
    last = found.state.rows[-1]
    assert found.reported.dev == max(model.dev for model in found.models)
    assert (last["dev"], last["test"]) == (found.reported.dev, found.reported.test)


def test_probing_resumes_after_any_round(scored) -> None:
    states: list[tuple] = []
    changes = {"selection": {"max_blocks": 3, "rounds_per_block": 2, "survivors": 0.5}}
    whole = rounds(scored, method="assyllm", **changes).run(save=lambda s: states.append(s.dump()))
    for tensors, raw in states[:-1:2]:
        again = rounds(scored, method="assyllm", **changes).run(State.load(tensors, raw))
        assert summary(again) == summary(whole)


def test_candidates_race(scored) -> None:
    """Every cohort but the first is asked of the leading share; those that left were behind when they left."""
    changes = {"selection": {"max_blocks": 3, "rounds_per_block": 3, "survivors": 0.4, "kept_per_round": 1}}
    run, asked, state = rounds(scored, method="assyllm", **changes), [], State()
    while state.phase != "head":
        state = run.step(state)
        for chain, blocks in state.rows[-1]["walk"]:
            asked.append((state.stage, "+".join(chain), blocks))
    for at in range(2, len(asked), 3):  # one chain: three rounds a place
        first, second, third = (blocks for _, _, blocks in asked[at - 2 : at + 1])
        assert [len(second), len(third)] == [math.ceil(0.4 * len(first)), math.ceil(0.16 * len(first))]
        assert set(third) <= set(second) <= set(first)
    again = rounds(scored, method="assyllm", **changes)
    leading = again.step(State())
    gains = {block: sums.evidence(again.settings.head.ridge_grid)[0] for (_, block), sums in leading.probed.items()}
    assert set(asked[1][2]) == set(sorted(gains, key=lambda block: -gains[block])[: len(asked[1][2])])


def test_what_left_the_race_wins_nothing(scored) -> None:
    """However well the cohorts that were asked of it said it did."""
    run = rounds(scored, method="assyllm", selection={"max_blocks": 2, "rounds_per_block": 3, "survivors": 0.4})
    state = run.step(run.step(State()))
    [[_, asked]] = state.rows[-1]["walk"]
    left = {key for key in state.probed if key[1] not in asked}
    assert left
    state.probed |= {
        key: HeadSums(s.xx, 0 * s.xy, s.yy, s.n, s.questions) for key, s in state.probed.items() if key not in left
    }
    state = run.step(state)
    assert state.stage == 1
    assert {chain.blocks[0] for chain in state.open} <= set(asked)


def test_a_race_waits_for_answers_and_controls_do_not_race(scored) -> None:
    slow = {"selection": {"max_blocks": 2, "rounds_per_block": 3, "survivors": 0.4}, "federated": {"dropout": 0.3}}
    few = rounds(scored, method="assyllm", **slow)
    state = few.step(few.step(State()))
    (_, first), (_, second) = (row["walk"][0] for row in state.rows)
    answered = state.rows[0]["participants"]
    assert 0 < answered < 5
    assert len(second) == math.ceil(len(first) * 0.4 ** (answered / 5)) > math.ceil(0.4 * len(first))
    for rule in ("probe_random", "probe_one_model"):
        changes = {"selection": slow["selection"] | {"rule": rule}}
        control = rounds(scored, method="assyllm", **changes)
        rows = control.step(control.step(State())).rows
        assert rows[0]["walk"] == rows[1]["walk"]


@pytest.mark.parametrize("tuning", ["local", "end_to_end"])
def test_adapters_are_tuned_and_resume(scored, tuning, tmp_path) -> None:
    changes = {
        "selection": {"rule": "paper_other_model", "max_blocks": 3},
        "adapter": {"kind": "cross_attention", "tuning": tuning, "tuning_rounds": 6, "mismatch": 0.0},
    }
    states: list[tuple] = []
    whole = rounds(scored, **changes).run(save=lambda s: states.append(s.dump()))
    losses = [row["loss"] for row in whole.rows if row.get("tuned")]
    assert len(losses) == 6
    kept = Checkpoint(tmp_path, "piqa", "key")
    for tensors, raw in states[-6:]:
        kept.save(tensors, raw)  # safetensors refuses tensors that share memory
    assert kept.load() is not None
    kinds = {adapter.kind for adapter in whole.joined.values() if adapter is not None}
    assert kinds == {"linear", "cross_attention"}  # the reported chain's joins are trained, the others' are not
    moved = [a for a in whole.joined.values() if a is not None and a.kind == "cross_attention"]
    assert all(float(adapter.out.abs().sum()) > 0 for adapter in moved)
    for tensors, raw in states[-6:-1:2]:
        assert summary(rounds(scored, **changes).run(State.load(tensors, raw))) == summary(whole)


def test_a_trained_projection_keeps_its_attention_silent(scored) -> None:
    tuned = {"kind": "cross_attention", "tuning": "end_to_end", "tuning_rounds": 3, "mismatch": 0.0}
    selection = {"rule": "paper_other_model", "max_blocks": 2}
    kept = {}
    for which in ("all", "projection"):
        state = rounds(scored, selection=selection, adapter=tuned | {"tuned": which}).run()
        kept[which] = [a for a in state.joined.values() if a is not None and a.kind == "cross_attention"]
    assert kept["projection"]
    assert all(float(adapter.out.abs().sum()) == 0 for adapter in kept["projection"])
    assert all(float(adapter.out.abs().sum()) > 0 for adapter in kept["all"])
    for one, other in zip(kept["projection"], kept["all"], strict=True):
        assert not torch.equal(one.weight, other.weight)


def test_random_blocks_report_the_finished_chain_that_is_best_on_dev(scored) -> None:
    changes = {
        "selection": {"rule": "probe_random", "max_blocks": 2, "rounds_per_block": 1, "beam": 3, "kept_per_round": 3}
    }
    run = rounds(scored, method="assyllm", **changes)
    state = run.run()
    told = {chain.id: run._evaluate(state, chain)["dev"] for chain in state.finished}
    assert len(told) > 1
    assert told[reported(state, run.settings.rule).id] == max(told.values())


def test_a_probe_gains_what_a_head_on_all_blocks_would() -> None:
    """Probes on what the chain leaves unexplained add up to nearly the joint fit on independent features."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(400, 4, dtype=torch.bool)
    x = torch.randn(400, 4, 12, generator=generator)
    answer = (x @ torch.randn(12, generator=generator)).argmax(-1)
    first, second = x[..., :6], x[..., 6:]
    grid = [0.001, 0.01, 0.1, 1.0, 10.0]
    one, head = HeadSums.of(first, mask, answer).evidence(grid)
    explained = first @ head.weight
    more, _ = HeadSums.of(second, mask, answer, explained).evidence(grid)
    joint, _ = HeadSums.of(x, mask, answer).evidence(grid)
    assert min(one, more) > 0
    assert one + more == pytest.approx(joint, rel=0.1)
    few = slice(0, 30)  # 90 rows: fewer than the columns of noise
    noise = torch.randn(400, 4, 100, generator=generator)
    useless, _ = HeadSums.of(noise[few], mask[few], answer[few], explained[few]).evidence(grid)
    useful, _ = HeadSums.of(second[few], mask[few], answer[few], explained[few]).evidence(grid)
    assert useless < 0.02 < useful


@pytest.mark.parametrize("rule", ["paper", "paper_other_model", "cka_only", "cor_only", "random"])
def test_every_rule_assembles(scored, rule) -> None:
    state = rounds(scored, selection={"rule": rule, "max_blocks": 3}, head={"rounds": 1, "scope": "all_blocks"}).run()
    assert state.finished
    if rule == "paper":  # the trap: the literal rule rebuilds original models
        best = max(state.finished, key=lambda c: c.worth())
        assert len({block.split(":")[0] for block in best.blocks}) == 1


def test_stragglers_are_asked_and_not_counted(scored) -> None:
    run = rounds(scored, federated={"stragglers": 0.5, "clients_per_round": 5}, selection={"max_blocks": 2})
    state = run.run()
    assert sum(row.get("stragglers", 0) for row in state.rows) > 0
    assert all(row["participants"] + row.get("stragglers", 0) <= 5 for row in state.rows)
    counted, late = in_time(0, 1, sample(0, 1, run.eligible, 5), 0.5)
    assert (state.rows[0]["participants"], state.rows[0].get("stragglers", 0)) == (len(counted), len(late))
    np.testing.assert_array_equal(state.hsic, run.data.hsic[counted].sum(0))


@pytest.mark.parametrize("method", ["assyllm_paper", "assyllm"])
def test_a_place_is_not_decided_by_nobody(scored, method) -> None:
    """Seven in ten drop out of cohorts of five: nobody is left of the second, so the third is asked for its block."""
    changes = {"selection": {"max_blocks": 3, "rounds_per_block": 1}, "head": {"rounds": 12}}
    state = rounds(scored, method=method, **changes, federated={"dropout": 0.7, "least_clients": 1}).run()
    assert state.finished
    _, lost, asked = state.rows[:3]
    assert (lost["phase"], lost["participants"]) == ("select", 0)
    assert (asked["phase"], asked["walk"]) == ("select", lost["walk"])


def test_no_sum_shows_a_single_clients_statistics(scored) -> None:
    """A cohort of one counts for nobody."""
    run = rounds(scored, federated={"dropout": 0.7})
    cohorts = [sample(0, r, run.eligible, 5, 0.7) for r in range(1, 40)]
    assert {1, 2} <= {len(cohort) for cohort in cohorts}
    for number, cohort in enumerate(cohorts, start=1):
        counted, lost = run.sample(number)
        assert counted == (cohort if len(cohort) > 1 else [])
        assert lost == ([] if len(cohort) > 1 else cohort)


def test_sums_of_other_candidates_than_were_asked_for_are_refused_whole() -> None:
    """Totals over unlike clients would tell one's part by subtraction."""
    sums = LinearSums(*(part + 1 for part in LinearSums.zeros(3, 2).parts()))
    task = replace(TASK, adapted=frozenset({(NAME, "b:1-2")}))

    def answer(client: int, **adapters: LinearSums | None) -> ScoreReply:
        plain = reply(client, ("b:1-2", 0.9))
        parts = {key: replace(part, adapter=adapters.get(key[1][0])) for key, part in plain.sums.items()}
        return replace(plain, sums=parts)

    fewer = answer(3, b=sums)
    fewer = replace(fewer, sums={key: part for key, part in fewer.sums.items() if key[1] != "d:1-2"})
    replies = [answer(0, b=sums), answer(1), answer(2, b=sums, c=sums), fewer, answer(4, b=sums)]
    tally, dropped = server_step(Tally(), task, replies)
    other = "adapter sums of other candidates than were asked for"
    assert {d.client: d.why for d in dropped} == {1: other, 2: other, 3: "sums of some candidates are missing"}
    assert torch.equal(tally.adapter[NAME, "b:1-2"].xx, 2 * sums.xx)
    assert tally.votes == {(NAME, "b:1-2"): 2}


@pytest.mark.parametrize("enter", ["text", "both"])
@pytest.mark.parametrize("rule", ["probe", "probe_random"])
def test_blocks_enter_with_those_before_them(scored, tmp_path, enter, rule) -> None:
    """They compute what they do in their own model; the model is saved, read again and counts its own tokens."""
    run = rounds(
        scored, method="assyllm", selection={"rule": rule, "max_blocks": 4, "rounds_per_block": 1, "enter": enter}
    )
    state = run.run()
    pool, best = run.pool, reported(state, run.settings.rule)
    assert all(len(chain.blocks) == 4 == len(chain.scores) for chain in state.finished)
    assert len({chain.blocks[0] for chain in state.finished}) == len(state.finished)
    for chain in state.finished:
        for i, block in enumerate(chain.blocks):
            alone = pool.info(block).kind == "start" or (i and pool.before(block) == chain.blocks[i - 1])
            adapter = state.joined[edge(chain.blocks[:i], block)] if i else None
            assert (adapter is None) == bool(alone)
            assert alone or enter == "both"
    asked = [name for row in state.rows for _, names in row.get("walk", []) for name in names]
    assert any("+" in name for name in asked)
    joined = 0
    for chain, names in (pair for row in state.rows for pair in row.get("walk", []) if pair[0]):
        held = {pool.info(block).model for block in chain}
        for first in (blocks_of(name)[0] for name in names):
            assert (pool.info(first).model in held) == (pool.info(first).kind != "start")
            joined += first not in chain and pool.info(first).kind != "start" and pool.before(first) != chain[-1]
    assert (joined > 0) == (enter == "both")
    walker = run.walker(state, "test")
    features = walker.features(best.blocks, "all_blocks", run.settings.head.sketch_dims)
    found = outcome(pool, run.data, run.settings, state, run.judged)
    product = assemble(pool, found, run.settings, "abc", {"run": "test"})
    product.save_pretrained(tmp_path / "model")
    again = AssembledModel.from_pretrained(tmp_path / "model")
    encoded = again.encode(run.data.splits["test"])
    assert torch.allclose(again.features(encoded), features, atol=1e-5)
    last = max(i for i, block in enumerate(best.blocks) if pool.info(block).kind == "start")
    depth = next((i for i in range(last + 1, 4) if pool.before(best.blocks[i]) != best.blocks[i - 1]), 4)
    native = Walker(pool, walker.readings, {}).features(
        best.blocks[last:depth], "all_blocks", run.settings.head.sketch_dims
    )
    start = sum(block_features(pool.info(block).width, run.settings.head.sketch_dims) for block in best.blocks[:last])
    assert torch.equal(features[..., start : start + native.shape[-1]], native)


def test_a_long_race_leaves_chains_of_the_beam_that_begin_apart(scored) -> None:
    gains = {"a:0-1": 5.0, "a:0-1+a:1-2": 9.0, "a:0-1+a:1-2+a:2-3": 12.0, "b:0-1": 1.0, "b:0-1+b:1-2": 1.8}
    selection = {"survivors": 0.5, "enter": "both", "kept_per_round": 2, "beam": 2}
    run = rounds(scored, method="assyllm", selection=selection)
    state = State(rows=[{"walk": [[[], list(gains)]], "participants": 45}], tried=1)
    state.probed = {("", n): SimpleNamespace(evidence=lambda grid, g=g: (g, None)) for n, g in gains.items()}
    assert probing._racing(run, state, Chain(()), list(gains)) == ["a:0-1", "a:0-1+a:1-2", "b:0-1"]


def test_entering_with_the_text_resumes(scored) -> None:
    changes = {"selection": {"max_blocks": 4, "rounds_per_block": 2, "enter": "both"}}
    whole = rounds(scored, method="assyllm", **changes).run()
    kept: list[tuple] = []
    rounds(scored, method="assyllm", **changes).run(save=lambda state: kept.append(state.dump()))
    for at in (0, 2, len(kept) // 2):
        assert summary(rounds(scored, method="assyllm", **changes).run(State.load(*kept[at]))) == summary(whole)


def test_clients_with_too_few_examples_for_cka_are_said_to_have_them(scored) -> None:
    run = rounds(scored)
    run.data.hsic[:] = 0
    with pytest.raises(ArtifactError, match=r"CKA needs 4 examples \(question, choice\), which no client"):
        run.run()


@pytest.mark.parametrize("method", ["assyllm_paper", "assyllm"])
def test_bounds_that_nothing_breaks_change_no_bit(scored, method) -> None:
    changes = {"selection": {"max_blocks": 3}, "method": method}
    default = rounds(scored, **changes).run()
    free = rounds(scored, **changes, federated={"row_norm": None, "max_examples": None}).run()
    assert summary(default) == summary(free)
    tight = rounds(scored, **changes, federated={"row_norm": 0.1, "max_examples": 1}).run()
    assert {row["why"] for row in tight.dropped} <= {"no vote on this chain"}, "an honest device keeps the bounds"
    assert summary(tight)[1] != summary(free)[1]


@pytest.mark.parametrize("method", ["assyllm_paper", "assyllm"])
def test_liars_in_sums_are_refused_by_nobody_and_move_every_sum(scored, method) -> None:
    """They keep the bounds they know; so all that bounds can do is to make them small."""
    changes = {"selection": {"max_blocks": 3}, "method": method}
    lying = rounds(scored, **changes, federated={"liars": 0.4, "lie": "sums"})
    assert len(lying.liars.in_sums) == 5
    assert not lying.liars.in_votes
    state, honest = lying.run(), rounds(scored, **changes).run()
    assert not state.dropped
    assert summary(state) == summary(rounds(scored, **changes, federated={"liars": 0.4, "lie": "sums"}).run())
    heads = [next(iter(found.heads.values())) for found in (state, honest)]
    assert float(heads[0].questions) > 10 * float(heads[1].questions)


@pytest.mark.parametrize("method", ["assyllm", "assyllm_paper"])
def test_a_block_waits_for_as_many_answers_as_whole_cohorts_would_give(scored, method) -> None:
    selection = {"rounds_per_block": 2, "max_blocks": 2}
    adapter = {} if method == "assyllm" else {"kind": "linear", "tuning": "none"}
    counts = {}
    for least in (0.0, 1.0):
        run = rounds(scored, method=method, federated={"dropout": 0.5, "clients_per_round": 5}, adapter=adapter,
                     selection=selection | {"least_answers": least}, head={"rounds": 40})  # fmt: skip
        state = run.run()
        asked = [row["participants"] for row in state.rows if row["phase"] == "select"]
        counts[least] = len(asked)
        if least:
            assert sum(asked) >= 2 * 5
        heard = sum(row["participants"] for row in state.rows if row["head"])
        assert len(run.eligible) - 1 <= heard <= len(run.eligible)  # all were counted once, but for a last one alone
        assert sum(row["head"] for row in state.rows) < 40
    assert counts[0.0] < counts[1.0] <= counts[0.0] + 10 * 2


def test_dropouts_and_lost_cohorts_are_survived(scored) -> None:
    state = rounds(scored, federated={"dropout": 0.6, "clients_per_round": 5}).run()
    assert state.finished
    assert min(row["participants"] for row in state.rows) < 5
    for eligible, why in (([], "no client"), ([3], "least_clients")):
        with pytest.raises(ArtifactError, match=why):
            Rounds(open_pool(scored / "pool8"), rounds(scored).data, rounds(scored).settings, 0, eligible)


def test_untrained_blocks_are_not_joined_by_what_trained_ones_give(scored, tmp_path) -> None:
    text = P.sections_json(tiny_params("assyllm", adapter={"kind": "linear"}), federate.SECTIONS)
    with pytest.raises(ArtifactError, match=r"^assembling.assyllm.adapter.kind: linear .* untrained_blocks$"):
        federate.run(text, "code", "untrained_blocks", "base", "", scored / "pool8", scored / "tasks",
                     scored / "partition", [scored / "scores"], scored / "cost.csv", 0, 0, None,
                     tmp_path / "run")  # fmt: skip


@pytest.mark.parametrize("method", ["assyllm_paper", "assyllm"])
def test_the_stage_writes_whole_tables_and_a_model_twice_alike(scored, tmp_path, method) -> None:
    p = tiny_params(method, tasks={"names": ["piqa"]}, selection={"max_blocks": 3})
    text = P.sections_json(p, federate.SECTIONS)
    for name in ("one", "two"):
        federate.run(text, "code", method, "base", "", scored / "pool8", scored / "tasks",
                     scored / "partition", [scored / "scores"], scored / "cost.csv", 0, 0, tmp_path / "ck",
                     tmp_path / name)  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()
    assert not (tmp_path / "ck").exists()
    verify_folder(one)
    metrics = check_columns(one / "metrics.csv", Metric)
    final = [m for m in metrics if m["metric"] == "accuracy" and m["split"] == "test" and m["round"] == ""]
    assert len(final) == 1
    assert check_columns(one / "run.csv", Run)[0]["run_id"] == f"base-{method}-zoo0-seed0"
    answered = check_columns(one / "predictions.csv", Prediction)
    share = sum(int(row["correct"]) for row in answered) / len(answered)
    assert float(final[0]["value"]) == pytest.approx(share)
    models = read_table(one / "models.csv")
    assert sum(int(row["reported"]) for row in models) == 1
    model = AssembledModel.from_pretrained(one / "models" / "piqa")
    assert "+".join(model.recipe.blocks) == next(row["model"] for row in models if row["reported"] == "1")
    from assyllm.tasks.record import read_questions

    questions = read_questions(scored / "tasks" / "piqa" / "test.jsonl")
    assert model.predict(questions) == [int(row["chosen"]) for row in answered]
    walked = read_walk(one / "walk.csv")
    assert [each.round for each in walked] == list(range(1, len(walked) + 1))
    ended = {"+".join(chain) for chain, _ in walked[-1].chains}
    assert ended == {row["model"] for row in models}, "the head's rounds pass through every assembled model"
    own = next(row["blocks"].split() for row in models if row["reported"] == "1")
    tuned = [each for each in walked if each.phase == "tune"]
    assert all(each.chains == [(own, [])] for each in tuned), "training passes through the reported model alone"
    assert bool(tuned) == (method == "assyllm_paper")
    assert sum(each.phase == "native" for each in walked) == (method == "assyllm_paper")
    assert [m["metric"] for m in metrics].count("collapsed") == 1


@pytest.mark.parametrize("method", ["assyllm_paper", "assyllm"])
def test_a_budget_for_the_pool_changes_no_bit_of_a_run(scored, tmp_path, method) -> None:
    made = []
    for budget in (None, 0.000180):
        p = tiny_params(method, tasks={"names": ["piqa"]}, selection={"max_blocks": 3}, swapper={"budget_gb": budget})
        text = P.sections_json(p, score.SECTIONS)
        where = (scored / "pool8", scored / "tasks", scored / "partition")
        score.run(text, "code", *where, 0, 0, tmp_path / f"scores{budget}")
        text = P.sections_json(p, federate.SECTIONS)
        out = tmp_path / f"run{budget}"
        federate.run(text, "code", method, "base", "", *where, [tmp_path / f"scores{budget}"], scored / "cost.csv",
                     0, 0, None, out)  # fmt: skip
        files = [tmp_path / f"scores{budget}" / "piqa.safetensors", out / "metrics.csv", out / "predictions.csv"]
        made.append([file.read_bytes() for file in [*files, *sorted((out / "models").rglob("*.safetensors"))]])
    assert made[0] == made[1]


def test_message_sizes_count_what_is_sent() -> None:
    assert reply(0, ("b:1-2", 0.9)).vote_bytes == 12
    assert reply(0).sum_bytes == 3 * 12
    assert replace(TASK, adapter_bytes=100).bytes == 100 + 4 * 2 + 3 * 4


def test_scores_of_another_pool_are_refused(scored, tmp_path):
    other = tmp_path / "pool"
    shutil.copytree(scored / "pool8", other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"files": dict(reversed(manifest["files"].items()))}))
    p = tiny_params("assyllm")
    with pytest.raises(ArtifactError, match="scores: scores of another pool"):
        open_task(open_pool(other), "piqa", p, scored / "tasks", scored / "partition", [scored / "scores"])
    dealt = tmp_path / "partition"
    shutil.copytree(scored / "partition", dealt)
    lines = (dealt / "piqa.csv").read_text().splitlines(keepends=True)
    (dealt / "piqa.csv").write_text("".join([lines[0], *reversed(lines[1:])]))
    with pytest.raises(ArtifactError, match="scores: scores of another partition"):
        open_task(open_pool(scored / "pool8"), "piqa", p, scored / "tasks", dealt, [scored / "scores"])


def test_a_run_that_nobody_answers_ends(scored) -> None:
    run = rounds(scored, federated={"dropout": 0.99})
    with pytest.raises(ArtifactError, match="no cohort answered in 11 rounds, so nothing was assembled"):
        run.run()
