"""Choosing blocks place by place: probes, the race of a place's candidates, how blocks enter."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from assyllm.adapter.sent import block_features
from assyllm.assembly.assembled import AssembledModel
from assyllm.assembly.head import Head, HeadSums, accuracy
from assyllm.assembly.search import Chain
from assyllm.assembly.walk import Walker, edge
from assyllm.comparator.compatibility import blocks_of
from assyllm.federated.outcome import assemble, outcome
from assyllm.federated.probing import _racing
from assyllm.federated.rounds import Rounds, reported
from assyllm.federated.state import State
from tiny.rounds import rounds, summary


def probing(scored, selection: dict, **changes) -> Rounds:
    return rounds(scored, method="assyllm", selection={"rule": "probe"} | selection, **changes)


@pytest.mark.parametrize("rule", ["probe", "probe_random", "probe_one_model"])
@pytest.mark.parametrize("kind", ["fixed_attention", "linear"])
def test_every_probing_rule_assembles(scored, rule, kind) -> None:
    selection = {"rule": rule, "max_blocks": 3, "rounds_per_block": 1, "enter": "adapter"}
    run = probing(scored, selection=selection, adapter={"kind": kind})
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
    selecting = [
        row for row in state.rows if row["phase"] != "head" and row.get("walk") and any(b for _, b in row["walk"])
    ]
    assert len(selecting) == max(len(chain.blocks) for chain in state.finished)
    assert all((row["bytes_up_sums"] > 0) == (rule != "probe_random") for row in selecting)
    assert all(row["bytes_up_votes"] == 0 for row in selecting)


def test_chains_begin_apart_go_to_the_end_and_dev_chooses(scored) -> None:
    changes = {"selection": {"max_blocks": 3, "rounds_per_block": 1, "beam": 2, "kept_per_round": 2}}
    run = probing(scored, **changes)
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
    run = probing(scored, **changes)
    found = outcome(run.pool, run.data, run.settings, run.run(), run.judged)
    last = found.state.rows[-1]
    assert found.reported.dev == max(model.dev for model in found.models)
    assert (last["dev"], last["test"]) == (found.reported.dev, found.reported.test)


def test_probing_resumes_after_any_round(scored) -> None:
    states: list[tuple] = []
    changes = {"selection": {"max_blocks": 3, "rounds_per_block": 2, "survivors": 0.5}}
    whole = probing(scored, **changes).run(save=lambda s: states.append(s.dump()))
    for tensors, raw in states[:-1:2]:
        again = probing(scored, **changes).run(State.load(tensors, raw))
        assert summary(again) == summary(whole)


def test_candidates_race(scored) -> None:
    """Every cohort but the first is asked of the leading share; those that left were behind when they left."""
    changes = {"selection": {"max_blocks": 3, "rounds_per_block": 3, "survivors": 0.4, "kept_per_round": 1}}
    run, asked, state = probing(scored, **changes), [], State()
    while state.phase != "head":
        state = run.step(state)
        for chain, blocks in state.rows[-1]["walk"]:
            asked.append(("+".join(chain), blocks))
    for at in range(2, len(asked), 3):  # one chain: three rounds a place
        first, second, third = (blocks for _, blocks in asked[at - 2 : at + 1])
        assert [len(second), len(third)] == [math.ceil(0.4 * len(first)), math.ceil(0.16 * len(first))]
        assert set(third) <= set(second) <= set(first)
    again = probing(scored, **changes)
    leading = again.step(State())
    gains = {block: sums.evidence(again.settings.head.ridge_grid)[0] for (_, block), sums in leading.probed.items()}
    assert set(asked[1][1]) == set(sorted(gains, key=lambda block: -gains[block])[: len(asked[1][1])])


def test_what_left_the_race_wins_nothing(scored) -> None:
    """However well the cohorts that were asked of it said it did."""
    run = probing(scored, selection={"max_blocks": 2, "rounds_per_block": 3, "survivors": 0.4})
    state = run.step(run.step(State()))
    [[_, asked]] = state.rows[-1]["walk"]
    left = {key for key in state.probed if key[1] not in asked}
    assert left
    state.probed |= {
        key: HeadSums(s.xx, 0 * s.xy, s.yy, s.n, s.questions) for key, s in state.probed.items() if key not in left
    }
    state = run.step(state)
    assert state.tried == 0, "a place was filled"
    assert {chain.blocks[0] for chain in state.open} <= set(asked)


def test_a_race_waits_for_answers_and_controls_do_not_race(scored) -> None:
    slow = {"selection": {"max_blocks": 2, "rounds_per_block": 3, "survivors": 0.4}, "federated": {"dropout": 0.3}}
    few = probing(scored, **slow)
    state = few.step(few.step(State()))
    (_, first), (_, second) = (row["walk"][0] for row in state.rows)
    answered = state.rows[0]["participants"]
    assert 0 < answered < 5
    assert len(second) == math.ceil(len(first) * 0.4 ** (answered / 5)) > math.ceil(0.4 * len(first))
    for rule in ("probe_random", "probe_one_model"):
        changes = {"selection": slow["selection"] | {"rule": rule}}
        control = probing(scored, **changes)
        rows = control.step(control.step(State())).rows
        assert rows[0]["walk"] == rows[1]["walk"]


def test_random_blocks_report_the_finished_chain_that_is_best_on_dev(scored) -> None:
    changes = {
        "selection": {"rule": "probe_random", "max_blocks": 2, "rounds_per_block": 1, "beam": 3, "kept_per_round": 3}
    }
    run = probing(scored, **changes)
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


@pytest.mark.parametrize("enter", ["text", "both"])
@pytest.mark.parametrize("rule", ["probe", "probe_random"])
def test_blocks_enter_with_those_before_them(scored, tmp_path, enter, rule) -> None:
    """They compute what they do in their own model; the model is saved, read again and counts its own tokens."""
    run = probing(scored, selection={"rule": rule, "max_blocks": 4, "rounds_per_block": 1, "enter": enter})
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
    run = probing(scored, selection=selection)
    state = State(rows=[{"walk": [[[], list(gains)]], "participants": 45}], tried=1)
    state.probed = {("", n): SimpleNamespace(evidence=lambda grid, g=g: (g, None)) for n, g in gains.items()}
    assert _racing(run, state, Chain(()), list(gains)) == ["a:0-1", "a:0-1+a:1-2", "b:0-1"]


def test_entering_with_the_text_resumes(scored) -> None:
    changes = {"selection": {"max_blocks": 4, "rounds_per_block": 2, "enter": "both"}}
    whole = probing(scored, **changes).run()
    kept: list[tuple] = []
    probing(scored, **changes).run(save=lambda state: kept.append(state.dump()))
    for at in (0, 2, len(kept) // 2):
        assert summary(probing(scored, **changes).run(State.load(*kept[at]))) == summary(whole)
