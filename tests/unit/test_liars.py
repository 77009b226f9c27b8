"""Who is late, who lies, and what bounds and robust counts do about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from assyllm import params as P
from assyllm.adapter.limit import Limit
from assyllm.adapter.linear import LinearSums
from assyllm.assembly.head import HeadSums, accuracy
from assyllm.comparator.cka import HsicTerms
from assyllm.federated.cohort import in_time
from assyllm.federated.liars import TIMES, Liars, chosen
from assyllm.federated.messages import CandidateSums, ScoreReply, ScoreTask, Vote
from assyllm.federated.secure_sum import secure_sum
from assyllm.federated.server import Tally, decide, server_step
from conftest import tiny_params

CHAIN, NAME = ("a:0-1",), "a:0-1"
BLOCKS = ("b:1-2", "c:1-2", "d:1-2")
GOOD = dict(zip(BLOCKS, (0.8, 0.7, 0.6), strict=True))
TASK = ScoreTask(round=1, candidates={CHAIN: BLOCKS}, kept=1, weight=1.0, batch=32, estimator="unbiased",
                 cor={(NAME, b): 0.5 for b in BLOCKS}, adapter_bytes=0)  # fmt: skip
CLIENTS = 20


def federated(**changes) -> P.Federated:
    return tiny_params(federated=changes).federated


def honest(task: ScoreTask, client: int, draw: np.random.Generator) -> ScoreReply:
    """Four examples, scores of unlike blocks with noise, votes for the best."""
    scores = {block: GOOD[block] + draw.normal(0, 0.02) for block in BLOCKS}
    sums = {
        (NAME, b): CandidateSums(HsicTerms(np.array([s]), np.ones(1), np.ones(1), 4), None) for b, s in scores.items()
    }
    best = sorted(scores, key=lambda block: -scores[block])[: task.ballot(CHAIN)]
    return ScoreReply(client, 1, 4, tuple(Vote(NAME, block, scores[block]) for block in best), sums)


def hijacked(vote: str, share: float, most: float = 1000.0, draws: int = 200) -> float:
    """How often the block that is worst by far wins."""
    task = replace(TASK, vote=vote, most=most)
    found = 0
    for number in range(draws):
        draw = np.random.default_rng(number)
        liars = Liars(number, CLIENTS, federated(liars=share))
        replies = liars.replies(task, [honest(task, client, draw) for client in range(CLIENTS)])
        tally, dropped = server_step(Tally(), task, replies)
        assert not dropped
        found += decide(tally, task)[NAME][0][0] == "d:1-2"
    return found / draws


@pytest.mark.parametrize("vote", ["weighted", "median", "borda"])
def test_without_liars_nothing_is_hijacked(vote) -> None:
    assert hijacked(vote, 0.0) == 0


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_liars_decide_the_weighted_vote_and_not_the_robust_ones(share) -> None:
    assert hijacked("weighted", share) == 1
    assert hijacked("median", share) <= 0.01
    assert hijacked("borda", share) <= 0.01


def test_a_bound_on_claims_alone_saves_the_weighted_vote_from_few_liars() -> None:
    assert hijacked("weighted", 0.2, most=4) == 0
    assert hijacked("weighted", 0.4, most=4) == 0  # each candidate's honest score is high: 12 x .8 beat 8 x 1
    assert hijacked("weighted", 0.5, most=4) == 1


def test_a_claim_beyond_the_bound_is_refused() -> None:
    draw = np.random.default_rng(0)
    replies = [honest(TASK, 0, draw), replace(honest(TASK, 1, draw), examples=9)]
    tally, dropped = server_step(Tally(), replace(TASK, most=8), replies)
    assert [(entry.client, entry.why) for entry in dropped] == [(1, "more examples than allowed")]
    assert tally.votes == {(NAME, "b:1-2"): 1}


def test_liars_and_stragglers_are_named_by_seed_and_number() -> None:
    few, many = chosen(3, 200, 0.2), chosen(3, 200, 0.4)
    assert (len(few), len(many)) == (40, 80)
    assert few < many
    assert few == chosen(3, 200, 0.2) != chosen(4, 200, 0.2)
    assert chosen(3, 200, 0.0) == frozenset()
    asked = list(range(100))
    counted, late = in_time(0, 1, asked, 0.4)
    assert sorted(counted + late) == asked
    assert 25 < len(late) < 55
    assert [sorted(part) for part in in_time(0, 1, asked[::-1], 0.4)] == [counted, late]
    assert in_time(0, 1, asked[50:], 0.4)[1] == [client for client in late if client >= 50]
    assert in_time(0, 2, asked, 0.4) != (counted, late)
    assert in_time(0, 1, asked, 0.0) == (asked, [])


def questions(draw: torch.Generator, number: int, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Features of four choices, of which a linear head finds the answer four times in five."""
    x = torch.randn(number, 4, len(weight), generator=draw, dtype=torch.float64)
    noise = 0.15 * float(weight.norm()) * torch.randn(number, 4, generator=draw, dtype=torch.float64)
    return x, torch.ones(number, 4, dtype=torch.bool), (x @ weight + noise).argmax(-1)


def head_accuracy(share: float, row_norm: float | None, most: int | None) -> float:
    """Test accuracy of a head from the sums of 200 clients with 1 to 8 questions each."""
    draw, sizes = torch.Generator().manual_seed(0), np.random.default_rng(0).integers(1, 9, 200)
    weight = torch.randn(10, generator=draw, dtype=torch.float64)
    typical = 10**0.5
    limit = Limit(
        np.inf if row_norm is None else row_norm * typical, np.inf if row_norm is None else row_norm,
        np.inf if most is None else 4 * most, np.inf if most is None else most,
    )  # fmt: skip
    replies = []
    for client, size in enumerate(sizes):
        x, mask, answer = questions(draw, int(size), weight)
        replies.append((client, {"head": HeadSums.of(x, mask, answer, limit=limit)}))
    liars = Liars(0, 200, federated(liars=share, lie="sums"))
    totals, refused = secure_sum(liars.head_sums(replies, {"head": limit}), {"head": limit})
    assert not refused
    x, mask, answer = questions(draw, 1000, weight)
    return accuracy(totals["head"].fit(0.01), x, mask, answer)


def test_few_liars_in_sums_turn_the_head_round_and_only_tight_bounds_weigh_them_down() -> None:
    best = head_accuracy(0.0, None, None)
    assert best > 0.75
    assert head_accuracy(0.0, 10.0, 1000) == best
    assert head_accuracy(0.0, 1.0, 4) > best - 0.05
    assert head_accuracy(0.005, None, None) < best - 0.1  # one of 200, in the few directions that its rows have
    assert head_accuracy(0.05, None, None) < 0.1
    assert head_accuracy(0.2, 1.0, 4) > best - 0.1
    assert head_accuracy(0.2, 10.0, 1000) < 0.1  # bounds that cut no honest device do not help


def test_what_no_honest_device_sends_is_refused_whole_and_named() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(6, generator=draw, dtype=torch.float64)
    limit = Limit(x=6.0, y=1.0, rows=40, examples=10)
    own = [HeadSums.of(*questions(draw, n, weight), limit=limit) for n in (10, 3, 12)]
    assert not any(sums.breaks(limit) for sums in own)
    assert float(own[2].questions) == pytest.approx(10)
    bad = {
        1: HeadSums(own[1].xx * 1e6, own[1].xy, own[1].yy, own[1].n, own[1].questions),
        2: HeadSums(own[1].xx, own[1].xy, own[1].yy * 9, own[1].n, own[1].questions),
        3: HeadSums(own[1].xx, own[1].xy * 1e3, own[1].yy, own[1].n, own[1].questions),
        4: HeadSums(*(part * 100 for part in own[1].parts())),
        5: HeadSums(own[1].xx, own[1].xy, own[1].yy, own[1].n * 100, own[1].questions),
        6: HeadSums(-own[1].xx, own[1].xy, own[1].yy, own[1].n, own[1].questions),
        7: HeadSums(own[1].xx * float("nan"), own[1].xy, own[1].yy, own[1].n, own[1].questions),
    }
    totals, refused = secure_sum([(0, {"head": own[0]}), *((c, {"head": s}) for c, s in bad.items())], {"head": limit})
    assert torch.equal(totals["head"].xx, own[0].xx)
    assert refused == {
        1: "sums of longer rows than allowed", 2: "sums of longer targets than allowed", 3: "sums that no rows have",
        4: "sums of more examples than allowed", 5: "sums of more rows than allowed",
        6: "sums of longer rows than allowed", 7: "sums that are not finite",
    }  # fmt: skip


def test_a_liar_that_is_not_bounded_is_refused_by_one_that_bounds() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(6, generator=draw, dtype=torch.float64)
    replies = [(client, {"head": HeadSums.of(*questions(draw, 4, weight))}) for client in range(10)]
    liars = Liars(0, 10, federated(liars=0.2, lie="sums"))
    limit = Limit(x=100.0, y=100.0, rows=400, examples=100)
    _, refused = secure_sum(liars.head_sums(replies, {"head": Limit()}), {"head": limit})
    assert set(refused) == set(liars.in_sums)
    kept = liars.head_sums(replies, {"head": limit})
    assert all(sums["head"].breaks(limit) == "" for _, sums in kept)
    one, other = secure_sum(kept, {"head": limit})[0], secure_sum(kept[::-1], {"head": limit})[0]
    assert all(torch.equal(a, b) for a, b in zip(one["head"].parts(), other["head"].parts(), strict=True))


def test_liars_turn_round_adapters_and_terms_within_the_bounds() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 5, generator=draw), torch.randn(8, 3, generator=draw)
    limit = Limit(x=9.0, y=9.0, rows=80, examples=10, choices=40)
    part = CandidateSums(HsicTerms(np.ones(1), np.ones(1), np.ones(1), 8), LinearSums.of(x, y, limit))
    reply = ScoreReply(0, 1, 2, (), {(NAME, "b:1-2"): part})
    task = replace(TASK, limits={(NAME, "b:1-2"): limit})
    sent = Liars(0, 1, federated(liars=1.0, lie="sums")).replies(task, [reply])[0].sums[NAME, "b:1-2"]
    assert sent.breaks(limit) == ""
    assert float(sent.adapter.n) == 80
    assert float(sent.hsic.cka()[0]) == pytest.approx(-1)
    along = torch.nn.functional.cosine_similarity(sent.adapter.xy.flatten(), part.adapter.xy.flatten(), dim=0)
    assert float(along) == pytest.approx(-1)
    assert sent.hsic.rows == 40
    many = CandidateSums(HsicTerms(np.ones(1), np.ones(1), np.ones(1), 41), None)
    assert many.breaks(limit) == "terms of more rows than allowed"
    long = LinearSums(*part.adapter.parts()[:2], part.adapter.x * 1e3, *part.adapter.parts()[3:])
    assert long.breaks(limit) == "sums that no rows have"


def test_gradients_are_weighed_by_what_may_be_claimed() -> None:
    held = {0: 4, 1: 2, 2: 6}
    assert Liars(0, 3, federated()).weights(held, 1000) == {0: 1, 1: 1, 2: 1}
    assert Liars(0, 3, federated()).weights(held, 4) == {0: 1, 1: 1, 2: 4 / 6}  # honest ones too
    liars = Liars(0, 3, federated(liars=0.34, lie="sums"))
    (liar,) = liars.in_sums
    for most, claimed in ((10.0, 10.0), (float("inf"), TIMES * held[liar])):
        assert liars.weights(held, most) == {c: -claimed / held[liar] if c == liar else 1 for c in held}
