"""A cohort simulated at once answers as its clients do one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
import torch

from assyllm import params
from assyllm.adapter.limit import Limit
from assyllm.adapter.reading import Readings
from assyllm.assembly.walk import Walker
from assyllm.bench import scoring as bench
from assyllm.checkpoint import Checkpoint
from assyllm.federated.client import client_step
from assyllm.federated.data import Cohort
from assyllm.federated.liars import Liars
from assyllm.federated.messages import ProbeTask, ScoreReply, ScoreTask
from assyllm.federated.probing import probe_step
from assyllm.federated.secure_sum import secure_sum
from assyllm.federated.server import Tally, server_step
from assyllm.federated.simulate import CohortHeadSums, head_totals, probe_cohort, score_cohort
from assyllm.zoo.encoding import combine

SIZES = (1, 2, 4, 7, 3, 23, 40)  # questions of each client: the first has too few rows for CKA
CHAINS = {
    ("llama:0-1",): ("llama:1-2", "opt:2-3", "bert:3-4"),
    ("roberta:0-1", "opt:1-2"): ("opt:3-4", "vicuna:1-2"),
}
TIGHT = Limit(x=0.5, y=0.5, rows=30, examples=5, choices=10)  # long rows and large clients are cut
PAIRS = [("+".join(chain), block) for chain, blocks in CHAINS.items() for block in blocks]


def _width(block: str) -> int:
    return bench.MEMBERS[block.split(":")[0]][2]


# all but the one that follows in its own model
ADAPTED = {
    (chain, block): (_width(chain.split("+")[-1]), _width(block))
    for chain, block in PAIRS
    if (chain, block) != ("llama:0-1", "llama:1-2")
}


@pytest.fixture(scope="module")
def pool():
    return bench.RandomPool()


@pytest.fixture(scope="module")
def data(pool):
    """Clients of unlike sizes, some questions with one real choice only."""
    data = bench.task_data(pool, 0)
    ends = list(accumulate(SIZES, initial=0))
    data.owned = [range(a, b) for a, b in pairwise(ends)]
    real = torch.ones(ends[-1], 2, dtype=torch.bool)
    real[::5, 1] = False
    encoded = data.encoded(pool, "llama", "train")[range(ends[-1])]
    data._encoded = {(model, "train"): replace(encoded, choice_mask=real) for model in pool.models}
    return data


def cohort(pool, data, clients: Sequence[int] = range(len(SIZES))) -> Cohort:
    adapters = bench.RandomAdapters(pool)

    def walker(items: Sequence[int]) -> Walker:
        encoded = data.encoded(pool, "llama", "train")[list(items)]
        return Walker(pool, Readings(lambda m: encoded, pool.embedding, "llama", lambda m: "llama"), adapters)

    return Cohort(pool, data, clients, walker, adapters, params.Head(scope="last_block", ridge_grid=[1.0], rounds=1))


def federated(liars: float) -> params.Federated:
    return params.Federated(clients_per_round=7, dropout=0, stragglers=0, liars=liars, lie="sums", row_norm=None,
                            max_examples=None)  # fmt: skip


def score_task(**changes) -> ScoreTask:
    cor = {pair: 0.3 + 0.1 * i for i, pair in enumerate(PAIRS)}
    values = {"round": 1, "candidates": CHAINS, "cor": cor, "kept": 2, "weight": 0.5, "batch": 32,
              "estimator": "unbiased", "adapter_bytes": 0, "adapted": ADAPTED}  # fmt: skip
    return ScoreTask(**(values | changes))


def agree(one: ScoreReply, other: ScoreReply) -> None:
    assert (one.client, one.round, one.examples) == (other.client, other.round, other.examples)
    assert one.votes == other.votes
    assert list(one.sums) == list(other.sums)
    for key, part in one.sums.items():
        a, b = part.hsic, other.sums[key].hsic
        assert a.rows == b.rows
        for left, right in ((a.xy, b.xy), (a.xx, b.xx), (a.yy, b.yy)):
            assert left.shape == right.shape == (1,)
            assert float(left[0]) == pytest.approx(float(right[0]), rel=1e-9, abs=1e-12 * float(a.xx[0]))
        assert (part.adapter is None) == (other.sums[key].adapter is None)
        if part.adapter is not None:
            close(part.adapter.parts(), other.sums[key].adapter.parts())


def close(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.shape == right.shape
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(
    "changes",
    [{}, {"batch": 5}, {"estimator": "biased"}, {"weight": 0.0}, {"weight": 1.0}, {"vote": "median", "kept": 1},
     {"random": {pair: i / 7 for i, pair in enumerate(PAIRS)}}, {"limits": dict.fromkeys(PAIRS, TIGHT), "most": 5}],
    ids=["default", "small minibatches", "biased", "COR", "CKA", "median", "random", "limits"],
)  # fmt: skip
def test_a_cohort_scores_as_its_clients_do(pool, data, changes) -> None:
    task, whole = score_task(**changes), cohort(pool, data)
    replies = score_cohort(task, whole)
    assert [reply.client for reply in replies] == list(range(len(SIZES)))
    for reply in replies:
        agree(client_step(task, whole.view(reply.client)), reply)
    assert bool(replies[0].votes) == (task.weight == 0 or bool(task.random))
    assert any(part.adapter is not None for part in replies[-1].sums.values())
    assert score_cohort(task, cohort(pool, data, [])) == []


def test_adapter_sums_do_not_say_who_voted(pool, data) -> None:
    """Totals over unlike clients, told by their visible votes, would show one client's X'X by subtraction."""
    task, whole = score_task(kept=1), cohort(pool, data)
    replies = score_cohort(task, whole)
    voted = [{(vote.chain, vote.block) for vote in reply.votes} for reply in replies]
    assert any(one != other for one in voted for other in voted), "votes differ"
    for answers in (replies, [client_step(task, whole.view(reply.client)) for reply in replies]):
        adapted = [[key for key, part in reply.sums.items() if part.adapter is not None] for reply in answers]
        assert len(adapted[0]) > len(CHAINS) * task.kept
        assert all(keys == adapted[0] for keys in adapted)
        totals = server_step(Tally(), task, answers)[0].adapter
        for chain in {chain for chain, _ in adapted[0]}:
            first, *others = [sums.xx for (name, _), sums in totals.items() if name == chain]
            assert others
            assert all(torch.equal(first, other) for other in others)
    parts = replies[-1].sums
    repeated = sum(parts[key].adapter.arriving_bytes for key in adapted[0][1::2])  # two candidates a chain
    assert replies[-1].sum_bytes == sum(part.bytes for part in parts.values()) - repeated, "X'X travels once a chain"


def test_a_cohort_without_a_score_or_a_candidate_scores_as_its_clients_do(pool, data) -> None:
    few = cohort(pool, data, [0])  # two rows: no CKA
    agree(client_step(score_task(), few.view(0)), score_cohort(score_task(), few)[0])
    whole = cohort(pool, data)
    (chain, *_) = CHAINS
    for task in (score_task(candidates={chain: ()}), score_task(candidates={**CHAINS, chain: ()})):
        for reply in score_cohort(task, whole):
            agree(client_step(task, whole.view(reply.client)), reply)


def test_what_a_cohort_adds_up_to_can_be_saved(pool, data, tmp_path) -> None:
    """Sums of a chain's candidates share tensors where one client alone sent them."""
    task = score_task()
    tally, _ = server_step(Tally(), task, score_cohort(task, cohort(pool, data, [6])))
    parts = {f"{'/'.join(key)}/{i}": t for key, sums in tally.adapter.items() for i, t in enumerate(sums.parts())}
    Checkpoint(tmp_path, "state", "key").save(parts, {})
    loaded = Checkpoint(tmp_path, "state", "key").load()
    assert loaded is not None
    assert all(torch.equal(loaded[0][name], tensor) for name, tensor in parts.items())


def test_a_clients_broken_states_stay_its_own(pool, data) -> None:
    """Padding points at the first client's rows; what is not finite there must reach nobody else."""
    broken = replace(data, native={b: s.index_fill(0, torch.arange(3), float("nan")) for b, s in data.native.items()})
    sound, harmed = (score_cohort(score_task(), cohort(pool, d, [1, 0, 2, 3, 6])) for d in (data, broken))
    for before, after in zip(sound[2:], harmed[2:], strict=True):
        agree(before, after)
    assert not harmed[0].votes


def test_clients_in_any_order_and_threads_give_the_same_votes(pool, data) -> None:
    task, order = score_task(), [6, 2, 0, 5, 1, 4, 3]
    torch.set_num_threads(2)
    try:
        shuffled = {reply.client: reply for reply in score_cohort(task, cohort(pool, data, order))}
    finally:
        torch.set_num_threads(1)
    for reply in score_cohort(task, cohort(pool, data)):
        assert reply.votes == shuffled[reply.client].votes


@pytest.mark.parametrize("limit", [Limit(), TIGHT], ids=["no limits", "limits"])
def test_a_cohort_probes_as_its_clients_do(pool, data, limit) -> None:
    candidates = {(): ("llama:0-1", "bert:0-1"), **CHAINS}
    heads = {"+".join(chain): torch.linspace(-1, 1, 2 * pool.info(chain[-1]).width) for chain in CHAINS}
    task, whole = ProbeTask(1, candidates, heads, 0, limits=dict.fromkeys(PAIRS, limit)), cohort(pool, data)
    found = {key: sums.each() for key, sums in probe_cohort(task, whole).items()}
    for client in whole.clients:
        alone = probe_step(task, whole.view(client))
        assert list(alone) == list(found)
        for key in alone:
            close(alone[key].parts(), found[key][client].parts())
    assert probe_cohort(task, cohort(pool, data, [])) == {}


@pytest.mark.parametrize("limit", [Limit(), TIGHT], ids=["no limits", "limits"])
@pytest.mark.parametrize("broken", [False, True], ids=["sound", "a client's states broken"])
@pytest.mark.parametrize("liars", [0.0, 0.5])
def test_a_cohorts_totals_are_what_the_secure_sum_makes_of_its_clients(pool, data, limit, broken, liars) -> None:
    if broken:
        data = replace(data, native={b: s.index_fill(0, torch.arange(2), float("nan")) for b, s in data.native.items()})
    whole, chain = cohort(pool, data), ("llama:0-1",)
    features = combine(whole.pooled("llama:0-1"))
    assert bool(torch.isnan(features).any()) == broken
    sums = {
        "a": CohortHeadSums.of(whole, features, limit=limit),
        "b": CohortHeadSums.of(whole, whole.features(chain), limit=limit),
    }
    lying = Liars(0, len(SIZES), federated(liars))
    replies = [(c, {key: own.each()[c] for key, own in sums.items()}) for c in whole.clients]
    limits = dict.fromkeys(sums, limit)
    expected, refused = secure_sum(lying.head_sums(replies, limits), limits)
    totals, why = head_totals(sums, lying)
    assert why == refused
    assert bool(refused) == broken
    assert totals.keys() == expected.keys()
    for key in expected:
        close(expected[key].parts(), totals[key].parts())
    assert all(own.bytes == expected[key].bytes for key, own in sums.items())


def test_a_cohort_without_a_sound_client_has_no_totals(pool, data) -> None:
    whole = cohort(pool, data)
    sums = CohortHeadSums.of(whole, torch.full((*whole.real.shape, 3), float("nan")), limit=TIGHT)
    totals, refused = head_totals({"head": sums}, Liars(0, len(SIZES), federated(0.0)))
    assert totals == {}
    assert set(refused) == set(whole.clients)
