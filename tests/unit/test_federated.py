"""Rounds: only the cohort counts, bad votes are dropped and named, order and interruptions change nothing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from assyllm import params as P
from assyllm.adapter.linear import LinearSums
from assyllm.artifacts import ArtifactError, verify_folder
from assyllm.assembly.assembled import AssembledModel
from assyllm.assembly.head import HeadSums
from assyllm.checkpoint import Checkpoint
from assyllm.comparator.cka import HsicTerms
from assyllm.federated import tuning as tuning_module
from assyllm.federated.cohort import device_memory, in_time, once_each, sample
from assyllm.federated.messages import CandidateSums, ScoreReply, ScoreTask, Vote
from assyllm.federated.rounds import Rounds
from assyllm.federated.secure_sum import secure_sum
from assyllm.federated.server import Tally, decide, server_step
from assyllm.federated.state import State
from assyllm.federated.task import open_task
from assyllm.quantizer.pool import open_pool
from assyllm.results import UNITS, Metric, Prediction, Run, check_columns, read_table
from assyllm.stages import federate, score
from assyllm.swapper import swapper
from assyllm.swapper.swapper import lend
from assyllm.swapper.walks import read_walk
from conftest import tiny_params
from tiny.rounds import rounds, summary

CHAIN, NAME = ("a:0-1",), "a:0-1"
TASK = ScoreTask(round=1, candidates={CHAIN: ("b:1-2", "c:1-2", "d:1-2")}, kept=2, weight=1.0, batch=32,
                 cor={(NAME, b): 0.5 for b in ("b:1-2", "c:1-2", "d:1-2")}, estimator="unbiased",
                 adapter_bytes=0)  # fmt: skip
WAYS = [("assyllm_paper", {}), ("assyllm", {}), ("assyllm", {"rule": "probe"})]  # method, its selection


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


def _with(client: int, hsic: HsicTerms, adapter: LinearSums | None, examples: object = 4) -> ScoreReply:
    plain = reply(client, ("b:1-2", np.float32(0.9)))
    sums = {key: replace(part, adapter=adapter if key[1] == "b:1-2" else None) for key, part in plain.sums.items()}
    return replace(plain, examples=examples, sums=sums | {(NAME, "b:1-2"): CandidateSums(hsic, adapter)})


def test_a_malformed_reply_is_dropped_and_the_others_count() -> None:
    sums, one = LinearSums.of(torch.eye(3), torch.ones(3, 2)), np.ones(1)
    sound = HsicTerms(one, one, one, 4)
    task = replace(TASK, adapted={(NAME, "b:1-2"): (3, 2)})
    shapes, counts = "sums of other shapes", "is no number of examples"
    bad = {
        1: (_with(1, sound, LinearSums.zeros(4, 2)), shapes),
        2: (_with(2, sound, replace(sums, x=torch.ones(2))), shapes),
        3: (_with(3, sound, replace(sums, yy=1.0)), shapes),
        4: (_with(4, HsicTerms(np.ones(2), np.ones(2), np.ones(2), 4), sums), shapes),
        5: (_with(5, HsicTerms(1.0, 1.0, 1.0, 4), sums), shapes),
        6: (_with(6, sound, sums, examples=float("nan")), f"nan {counts}"),
        7: (_with(7, sound, sums, examples=float("inf")), f"inf {counts}"),
        8: (_with(8, HsicTerms(2 * one, one, one, 4), sums), "terms that no states have"),
        9: (_with(9, HsicTerms(one, -one, -one, 4), sums), "terms that no states have"),
        10: (_with(10, HsicTerms(one, one, one, -4), sums), "terms of more rows than allowed"),
    }
    tally, dropped = server_step(Tally(), task, [_with(0, sound, sums), *(told for told, _ in bad.values())])
    assert {d.client: d.why for d in dropped} == {client: why for client, (_, why) in bad.items()}
    assert tally.votes == {(NAME, "b:1-2"): 1}
    assert tally.weight == {(NAME, "b:1-2"): pytest.approx(0.9)}
    assert torch.equal(tally.adapter[NAME, "b:1-2"].xx, sums.xx)


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
    assert secure_sum([(2, sound), (2, sound)], least=2) == ({}, {2: "more than one part"})  # one client twice


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


def test_a_run_assembles_models_and_only_cohorts_contribute(scored) -> None:
    run = rounds(scored)
    state = run.run()
    assert state.finished
    assert all(len(chain.blocks) >= 2 for chain in state.finished)
    assert all(row["participants"] <= 5 for row in state.rows)
    assert sum(1 for row in state.rows if row["phase"] == "head") == 3
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


@pytest.mark.parametrize("tuning", ["local", "end_to_end"])
def test_adapters_are_tuned_and_resume(scored, tuning, tmp_path) -> None:
    changes = {
        "selection": {"rule": "paper_other_model", "max_blocks": 3},
        "adapter": {"kind": "cross_attention", "tuning": tuning, "tuning_rounds": 6, "mismatch": 0.0},
    }
    states: list[tuple] = []
    whole = rounds(scored, **changes).run(save=lambda s: states.append(s.dump()))
    units = [row["loss_unit"] for row in whole.rows if row.get("tuned")]
    assert units == 6 * ["shares of the variance" if tuning == "local" else "nats"]
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


def test_a_round_of_tuning_that_nobody_answers_is_no_step(scored, monkeypatch) -> None:
    steps: list[int] = []
    adam = tuning_module._adam

    def counted(run, name, gradient, step, rate) -> None:
        steps.append(step)
        adam(run, name, gradient, step, rate)

    monkeypatch.setattr(tuning_module, "_adam", counted)
    tuned = {"kind": "cross_attention", "tuning": "local", "tuning_rounds": 12, "mismatch": 0.0}
    selection = {"rule": "paper_other_model", "max_blocks": 2}
    federated = {"dropout": 0.6, "clients_per_round": 4}
    state = rounds(scored, selection=selection, adapter=tuned, federated=federated).run()
    rows = [row for row in state.rows if row.get("tuned")]
    answered = [row for row in rows if row["participants"]]
    assert 0 < len(answered) < len(rows) == 12
    assert all(("loss" in row) == (row["participants"] > 0) for row in rows)
    assert sorted(set(steps)) == list(range(1, len(answered) + 1))


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


@pytest.mark.parametrize(("method", "rule"), [("assyllm_paper", {}), ("assyllm", {"rule": "probe"})])
def test_a_place_is_not_decided_by_nobody(scored, method, rule) -> None:
    """Seven in ten drop out of cohorts of five: nobody is left of the second, so the third is asked for its block."""
    changes = {"selection": rule | {"max_blocks": 3, "rounds_per_block": 1}, "head": {"rounds": 12}}
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
    sums = LinearSums.of(torch.eye(3), torch.ones(3, 2))
    task = replace(TASK, adapted={(NAME, "b:1-2"): (3, 2)})

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


def test_clients_with_too_few_examples_for_cka_are_said_to_have_them(scored) -> None:
    run = rounds(scored)
    run.data.hsic[:] = 0
    with pytest.raises(ArtifactError, match=r"CKA needs 4 examples \(question, choice\), which no client"):
        run.run()


@pytest.mark.parametrize(("method", "rule"), WAYS)
def test_bounds_that_nothing_breaks_change_no_bit(scored, method, rule) -> None:
    changes = {"selection": rule | {"max_blocks": 3}, "method": method}
    # blocks that know nothing tell the choices of the public text hardly apart: real rows are up to 19 times as long
    wide = rounds(scored, **changes, federated={"row_norm": 100.0, "max_examples": 1000}).run()
    free = rounds(scored, **changes, federated={"row_norm": None, "max_examples": None}).run()
    assert summary(wide) == summary(free)
    tight = rounds(scored, **changes, federated={"row_norm": 0.1, "max_examples": 1}).run()
    assert {row["why"] for row in tight.dropped} <= {"no vote on this chain"}, "an honest device keeps the bounds"
    assert summary(tight)[1] != summary(free)[1]


@pytest.mark.parametrize(("method", "rule"), WAYS)
def test_liars_in_sums_are_refused_by_nobody_and_move_every_sum(scored, method, rule) -> None:
    """They keep the bounds they know; so all that bounds can do is to make them small."""
    changes = {"selection": rule | {"max_blocks": 3}, "method": method}
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
    selection = {"rounds_per_block": 2, "max_blocks": 2} | ({"rule": "probe"} if method == "assyllm" else {})
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
        heard = sum(row["participants"] for row in state.rows if row["phase"] == "head")
        assert len(run.eligible) - 1 <= heard <= len(run.eligible)  # all were counted once, but for a last one alone
        assert sum(row["phase"] == "head" for row in state.rows) < 40
    assert counts[0.0] < counts[1.0] <= counts[0.0] + 10 * 2


def test_dropouts_and_lost_cohorts_are_survived(scored) -> None:
    state = rounds(scored, federated={"dropout": 0.6, "clients_per_round": 5}).run()
    assert state.finished
    assert min(row["participants"] for row in state.rows) < 5
    for eligible, why in (([], "no client"), ([3], "least_clients")):
        with pytest.raises(ArtifactError, match=why):
            Rounds(open_pool(scored / "pool8"), rounds(scored).data, rounds(scored).settings, 0, eligible)


def test_untrained_blocks_are_not_joined_by_what_trained_ones_give(scored, tmp_path) -> None:
    text = P.sections_json(
        tiny_params("assyllm", adapter={"kind": "linear"}, selection={"rule": "probe"}), federate.SECTIONS
    )
    with pytest.raises(ArtifactError, match=r"^assembling.assyllm.adapter.kind: linear .* untrained_blocks$"):
        federate.run(text, "code", "untrained_blocks", "base", "", scored / "pool8", scored / "tasks",
                     scored / "partition", [scored / "scores"], scored / "cost" / "untrained_blocks.csv", 0, 0, None,
                     tmp_path / "run")  # fmt: skip


@pytest.mark.parametrize(("method", "rule"), WAYS)
def test_the_stage_writes_whole_tables_and_a_model_twice_alike(scored, tmp_path, method, rule) -> None:
    p = tiny_params(method, tasks={"names": ["piqa"]}, selection=rule | {"max_blocks": 3})
    text = P.sections_json(p, federate.SECTIONS)
    for name in ("one", "two"):
        federate.run(text, "code", method, "base", "", scored / "pool8", scored / "tasks",
                     scored / "partition", [scored / "scores"], scored / "cost" / f"{method}.csv", 0, 0,
                     tmp_path / "ck", tmp_path / name)  # fmt: skip
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
    rows = read_table(one / "walk.csv")
    assert list(dict.fromkeys(int(row["round"]) for row in rows)) == list(range(1, len(walked) + 1))
    ended = {"+".join(chain) for chain, _ in walked[-1].chains}
    assert ended == {row["model"] for row in models}, "the head's rounds pass through every assembled model"
    own = next(row["blocks"].split() for row in models if row["reported"] == "1")
    tuned = [row for row in rows if row["phase"] == "tune"]
    assert {(row["chain"], row["candidates"]) for row in tuned} <= {(" ".join(own), "")}, "it trains the reported model"
    assert bool(tuned) == (method == "assyllm_paper")
    assert len({row["round"] for row in rows if row["phase"] == "native"}) == (method == "assyllm_paper")
    assert [m["metric"] for m in metrics].count("collapsed") == 1
    units = {(m["metric"], m["unit"]) for m in metrics}
    counted = {m["metric"] for m in metrics} - {"accuracy", "collapsed", "loss"}
    assert units >= {(name, UNITS[name]) for name in counted}
    assert {unit for name, unit in units if name == "loss"} == {"squared error", *(["nats"] if tuned else [])}


@pytest.mark.parametrize(("method", "rule"), WAYS)
def test_a_budget_for_the_pool_changes_no_bit_of_a_run(scored, tmp_path, monkeypatch, method, rule) -> None:
    made = []
    for budget, policy in ((None, "plan"), (0.000180, "plan"), (0.000180, "lru_correlation")):
        p = tiny_params(method, tasks={"names": ["piqa"]}, selection=rule | {"max_blocks": 3},
                        swapper={"budget_gb": budget, "policy": policy})  # fmt: skip
        text = P.sections_json(p, score.SECTIONS)
        where = (scored / "pool8", scored / "tasks", scored / "partition")
        scores, out = tmp_path / f"scores{budget}{policy}", tmp_path / f"run{budget}{policy}"
        score.run(text, "code", *where, 0, scores)
        text = P.sections_json(p, federate.SECTIONS)
        given = []
        monkeypatch.setattr(swapper, "lend", lambda *asked, given=given: given.append(asked[2:]) or lend(*asked))
        federate.run(text, "code", method, "base", "", *where, [scores], scored / "cost" / f"{method}.csv", 0, 0,
                     None, out)  # fmt: skip
        ((related,),) = given
        assert (related is not None) == (policy == "lru_correlation")
        assert related is None or len(related) > 50
        files = [scores / "piqa.safetensors", out / "metrics.csv", out / "predictions.csv"]
        made.append([file.read_bytes() for file in [*files, *sorted((out / "models").rglob("*.safetensors"))]])
    assert made[0] == made[1] == made[2]


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
    with pytest.raises(ArtifactError, match="no cohort told anything in 11 rounds, so nothing was assembled"):
        run.run()
