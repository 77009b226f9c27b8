"""Totals that the server's own questions contradict: the synthetic head of test_liars, and runs on the tiny zoo."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from assyllm.adapter.limit import Limit
from assyllm.artifacts import ArtifactError
from assyllm.assembly.head import HeadSums, accuracy
from assyllm.federated.liars import Liars
from assyllm.federated.outcome import outcome
from assyllm.federated.secure_sum import secure_sum
from assyllm.federated.state import State
from assyllm.federated.witness import Witness
from conftest import tiny_params
from tiny.rounds import rounds, summary

GRID = (0.001, 0.01, 0.1, 1.0)
LIMIT = Limit(10 * 10**0.5, 10.0, 4000, 1000)  # the default's: what no honest device breaks


def questions(draw: torch.Generator, number: int, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = torch.randn(number, 4, len(weight), generator=draw, dtype=torch.float64)
    noise = 0.15 * float(weight.norm()) * torch.randn(number, 4, generator=draw, dtype=torch.float64)
    return x, torch.ones(number, 4, dtype=torch.bool), (x @ weight + noise).argmax(-1)


def believed(share: float) -> tuple[list[bool], list[bool], float]:
    """Of ten cohorts whether each is believed and whether nobody in it lies, and the head's accuracy in the end."""
    draw, sizes = torch.Generator().manual_seed(0), np.random.default_rng(0).integers(1, 9, 200)
    weight = torch.randn(10, generator=draw, dtype=torch.float64)
    own, unseen = questions(draw, 300, weight), questions(draw, 1000, weight)
    witness, so_far = Witness(GRID, *own), None
    liars = Liars(0, 200, tiny_params(federated={"liars": share, "lie": "sums"}).federated)
    kept, clean = [], []
    for cohort in np.arange(200).reshape(10, 20):
        replies = [(int(c), {"": HeadSums.of(*questions(draw, int(sizes[c]), weight), limit=LIMIT)}) for c in cohort]
        totals, refused = secure_sum(liars.head_sums(replies, {"": LIMIT}), {"": LIMIT})
        assert not refused
        kept.append(witness.believes(totals[""], so_far))
        clean.append(not liars.in_sums & set(cohort.tolist()))
        if kept[-1]:
            so_far = totals[""] if so_far is None else so_far + totals[""]
    return kept, clean, accuracy(witness.fit(so_far)[0], *unseen)


def test_cohorts_that_hold_a_liar_are_left_out_and_of_honest_ones_few() -> None:
    kept, _, best = believed(0.0)
    assert sum(kept) >= 8, "where little changes an honest one may be left out by chance"
    assert best > 0.75
    kept, clean, found = believed(0.02)
    assert not any(held for held, honest in zip(kept, clean, strict=True) if not honest)
    assert 2 <= sum(clean) <= 8
    assert sum(kept) >= sum(clean) - 1
    assert found > best - 0.03
    kept, clean, found = believed(0.4)
    assert not any(kept)
    assert found > best - 0.05, "its own 300 questions are left"


def test_products_that_no_rows_have_are_not_believed() -> None:
    weight = torch.ones(10, dtype=torch.float64)
    witness = Witness(GRID, *questions(torch.Generator().manual_seed(0), 60, weight))
    sound = HeadSums.of(*questions(torch.Generator().manual_seed(1), 60, weight))
    assert witness.believes(sound, None)
    assert not witness.believes(replace(sound, xx=-9 * sound.xx), None)
    head, ridge, right = witness.fit(sound)
    assert ridge in GRID
    assert 0.6 < right < 1
    assert torch.equal(head.weight, witness.pooled(sound).fit(ridge).weight)
    assert witness.pooled(None).questions == 60


@pytest.mark.parametrize("method", ["assyllm", "assyllm_paper"])
def test_a_run_whose_sums_are_contradicted_ends_with_the_servers_questions(scored, method) -> None:
    changes = {"selection": {"max_blocks": 2}, "method": method}
    lying = {"liars": 0.6, "lie": "sums", "row_norm": None, "max_examples": None}
    states: list[tuple] = []
    run = rounds(scored, **changes, federated=lying | {"check_sums": True})
    state = run.run(save=lambda s: states.append(s.dump()))
    contradicted = [row for row in state.dropped if row["why"] == "a total that the server's own questions contradict"]
    assert contradicted
    assert all(row["client"] is None for row in contradicted)
    model = outcome(run.pool, run.data, run.settings, state, run.judged).reported
    assert 0 <= model.dev <= 1
    assert model.ridge in run.settings.head.ridge_grid
    for kept in (states[0], states[-2]):
        again = rounds(scored, **changes, federated=lying | {"check_sums": True})
        assert summary(again.run(State.load(*kept))) == summary(state)


def test_without_the_check_a_survey_that_nobody_answered_is_an_error(scored) -> None:
    nobody = {"dropout": 0.97, "clients_per_round": 5, "least_clients": 5}
    with pytest.raises(ArtifactError, match="no client answered"):
        rounds(scored, method="assyllm", federated=nobody).run()
