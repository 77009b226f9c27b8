"""Layers side by side: a chain of a model's own blocks is the model; two spaces; which models get a heatmap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assyllm.artifacts import ArtifactError
from assyllm.comparator.public import cloze_questions
from assyllm.features import (
    POINTS,
    SCORES,
    Chains,
    PublicRun,
    chosen,
    heatmap,
    plane,
    point_rows,
    score_rows,
    spaces,
    standardised,
)
from conftest import tiny_params

SETTINGS = tiny_params(
    features={"texts": 24, "points": 8, "perplexity": 3.0, "candidates": 2, "pairs": [["opt", "llama"]]}
)


@pytest.fixture(scope="module")
def public(tiny_pool, tiny_folder) -> PublicRun:
    lines = (tiny_folder / "tasks" / "boolq" / "public.txt").read_text(encoding="utf-8").splitlines()
    questions = cloze_questions(lines, SETTINGS.features.texts)
    return PublicRun.read(tiny_pool, questions, 48, SETTINGS.comparator)


def blocks_of(public: PublicRun, model: str) -> list[str]:
    return [info.id for info in public.pool.of_model(model)]


def test_a_model_s_own_blocks_are_the_model(public: PublicRun) -> None:
    own = blocks_of(public, "opt")
    chains = Chains(public, 0.01)
    for mine, theirs in zip(chains.layers(own), public.layers("opt"), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(public.layers("opt")[-1], public.states(own[-1]))
    cells = np.array(heatmap(public, chains, own), dtype=float)
    assert np.allclose(np.diag(cells), 1, atol=1e-4)
    assert np.allclose(cells, cells.T, atol=1e-5)
    assert chains.scores(own)[0] == pytest.approx(1, abs=1e-4)
    assert np.isnan(chains.scores(own[:1])).all()  # nothing was joined


def test_a_joined_chain_is_scored_below_its_block_s_own_model(public: PublicRun) -> None:
    chain = [blocks_of(public, "llama")[0], *blocks_of(public, "bert")[1:]]
    chains = Chains(public, 0.01)
    cka, cor, both = chains.scores(chain)
    weight = SETTINGS.comparator.cka_weight
    assert both == pytest.approx(weight * max(0, cka) + (1 - weight) * cor, abs=0.02)
    assert cka < 0.999
    assert 0 < cor < 1
    layers = sum(len(public.pool.block(block).stack) for block in chain)
    assert np.shape(heatmap(public, chains, chain)) == (layers, public.pool.models["bert"].layers)


def test_spaces_and_plane() -> None:
    draw = np.random.default_rng(0)
    layers = [standardised(torch.from_numpy(draw.normal(size=(12, width)))) for width in (5, 8)]
    assert np.allclose(layers[0].std(0), 1)
    assert not standardised(torch.ones(4, 2)).any()
    found = spaces(layers)
    assert found["columns"].shape == (24, 8)
    assert not found["columns"][:12, 5:].any()
    assert found["cosines"].shape == (24, 12)
    assert np.allclose(np.diag(found["cosines"][:12]), 1)
    rotated, _ = np.linalg.qr(draw.normal(size=(5, 5)))
    assert np.allclose(spaces([layers[0] @ rotated])["cosines"], found["cosines"][:12]), "cosines know no columns"
    first, second = (plane(found["cosines"], 3.0) for _ in range(2))
    assert first.shape == (24, 2)
    assert first.tobytes() == second.tobytes()


def test_candidates_are_spread_over_compatibility() -> None:
    models = [
        {"blocks": f"a:0-1 {last}", "compatibility": str(score)}
        for last, score in (("b:1-2", 0.9), ("b:1-2", 0.8), ("c:1-2", 0.7), ("d:1-2", 0.4), ("e:1-2", 0.1))
    ]
    assert chosen(models, 2) == ["a:0-1 b:1-2", "a:0-1 e:1-2"]
    assert chosen(models, 9) == [f"a:0-1 {last}:1-2" for last in "bcde"]
    assert chosen(models[:2], 4) == ["a:0-1 b:1-2"]


def test_rows_have_every_model_the_cells_of_some_and_all_points(public: PublicRun) -> None:
    ends = [f"{blocks_of(public, 'opt')[0]} {blocks_of(public, name)[-1]}" for name in ("llama", "bert", "roberta")]
    models = [
        {
            "task": "boolq",
            "seed": "0",
            "blocks": blocks,
            "compatibility": str(1 - i / 4),
            "trained_joins": "0",
            "accuracy_test": "0.5",
        }
        for i, blocks in enumerate(ends)
    ]
    rows = score_rows(public, models, SETTINGS.features, 0.01, draw=True)
    assert all(set(row) == set(SCORES) for row in rows)
    assert [row["shown"] for row in rows if row["what"] == "model"] == [1, "", 2]
    assert {row["model"] for row in rows if row["what"] == "cell"} == {ends[0], ends[2]}
    assert not [row for row in score_rows(public, models, SETTINGS.features, 0.01, draw=False) if row["shown"]]
    with pytest.raises(ArtifactError, match=r"features\.perplexity: 500 is too much for \d+ points"):
        point_rows(public, SETTINGS.features.model_copy(update={"perplexity": 500.0}))
    points = point_rows(public, SETTINGS.features)
    assert all(set(row) == set(POINTS) for row in points)
    layers = {name: public.pool.models[name].layers for name in ("opt", "llama")}
    assert sum(row["what"] == "cka" for row in points) == layers["opt"] * layers["llama"]
    assert sum(row["what"] == "point" for row in points) == 2 * 8 * sum(layers.values())
