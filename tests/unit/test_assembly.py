"""Search, recipe and the assembled model: what is saved answers like what was assembled."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from assyllm.adapter.cross_attention import CrossAttentionAdapter
from assyllm.adapter.linear import LinearAdapter
from assyllm.adapter.reading import Readings, readings
from assyllm.artifacts import ArtifactError
from assyllm.assembly.assembled import AssembledModel
from assyllm.assembly.head import Head
from assyllm.assembly.recipe import Recipe, recipe_of, strictest
from assyllm.assembly.search import Chain, apart, grow, ranked, roots, shortlist
from assyllm.assembly.walk import Walker, edge
from assyllm.comparator.activations import native
from assyllm.comparator.compatibility import RULES, eligible
from assyllm.quantizer.pool import open_pool
from assyllm.swapper.plan import needed_bytes
from assyllm.swapper.swapper import Swapper
from assyllm.zoo.encoding import combine, encode, pool
from tiny import zoo

CHAIN = ("bert:0-1", "opt:1-2", "llama:3-4")
QUESTIONS = zoo.questions("openbookqa", "test", 9) + zoo.questions("boolq", "test", 5)


def adapters() -> list[LinearAdapter | None]:
    generator = torch.Generator().manual_seed(0)
    made: list[LinearAdapter | None] = [None]
    for d, e in ((24, 40), (40, 32)):
        made.append(LinearAdapter(torch.randn(d, e, generator=generator) / d**0.5, torch.zeros(e)))
    return made


def model(blocks, scope: str = "last_block") -> AssembledModel:
    width = 2 * 32 if scope == "last_block" else 2 * (24 + 40 + 32)
    head = Head(torch.randn(width, generator=torch.Generator().manual_seed(1)))
    recipe = recipe_of(blocks, CHAIN, adapters(), "openbookqa", 48, {"kind": "ridge", "scope": scope, "ridge": 0.1},
                       0.7, "abc", {"run": "test"})  # fmt: skip
    tokenizers = {"bert": blocks.tokenizer("bert")}
    return AssembledModel([blocks.block(b) for b in CHAIN], adapters(), head, recipe, tokenizers, {}).eval()


def test_a_beam_apart_keeps_the_best_chain_of_each_start() -> None:
    chains = [
        Chain(tuple(blocks), scores)
        for blocks, scores in (("ax", (3, 2)), ("ay", (3, 1)), ("bx", (1, 1)), ("cx", (0, 1)))
    ]
    assert ["".join(chain.blocks) for chain in apart(chains, 2)] == ["ax", "bx"]
    assert len(apart(chains, 9)) == 3


def test_a_chain_of_one_model_is_that_model(tiny_pool) -> None:
    encoded = encode(tiny_pool.tokenizer("opt"), QUESTIONS, 48)
    chain = [info.id for info in tiny_pool.of_model("opt")]
    found = Readings(lambda _: encoded, tiny_pool.embedding, "opt", lambda _: "opt", chunk_tokens=64)
    walker = Walker(tiny_pool, found, {edge(chain[:i], chain[i]): None for i in range(1, 4)})
    original = zoo.model("opt", len(tiny_pool.tokenizer("opt")), 1)
    with torch.no_grad():
        states = original.model(input_ids=encoded.ids.flatten(0, 1), attention_mask=encoded.mask.flatten(0, 1).long())
    expected = pool(states.last_hidden_state, encoded) * encoded.choice_mask[..., None]
    torch.testing.assert_close(combine(walker.vectors(chain)), expected, atol=1e-5, rtol=1e-4)
    known = native(tiny_pool, "opt", encoded)
    torch.testing.assert_close(known.pooled[chain[-1]], walker.vectors(chain), atol=1e-5, rtol=1e-4)
    assert walker.passes == 4  # the prefix is not run again


def test_recipe_reads_back_and_names_the_strictest_licence(tiny_pool) -> None:
    recipe = model(tiny_pool).recipe
    assert recipe.blocks == CHAIN
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert "layer_range: [1, 2]" in recipe.to_yaml()
    assert strictest(["MIT", "Apache-2.0"]) == "Apache-2.0"
    assert strictest(["Apache-2.0", "Llama-1 (non-commercial)", "MIT"]) == "Llama-1 (non-commercial)"
    assert strictest(["CC-BY-NC-4.0", "my own"]) == "my own"
    with pytest.raises(ArtifactError, match="not a recipe"):
        Recipe.from_yaml("format: 1")
    with pytest.raises(ArtifactError, match="max_token is no key of a recipe"):
        Recipe.from_yaml(recipe.to_yaml() + "max_token: 3\n")
    with pytest.raises(ArtifactError, match="a model of no blocks"):
        AssembledModel([], [], Head(torch.ones(2)), recipe, {}, {})


def test_who_may_follow(tiny_pool) -> None:
    chain = ("llama:0-1", "opt:2-3")
    found = eligible(tiny_pool, chain, RULES["paper"])
    assert "opt:3-4" in found
    assert not {"bert:0-1", "opt:2-3"} & set(found)
    assert "opt:3-4" not in eligible(tiny_pool, chain, RULES["paper_distinct"])
    assert not [b for b in eligible(tiny_pool, chain, RULES["paper_other_model"]) if b.startswith("opt")]


def test_paths_end_at_terminating_blocks_depth_or_when_nothing_follows(tiny_pool) -> None:
    chains = roots(tiny_pool)
    assert [c.id for c in chains] == [b for b in tiny_pool.ids if tiny_pool.info(b).kind == "start"]
    two = [Chain(("llama:0-1", "opt:1-2"), (0.5,)), Chain(("bert:0-1", "opt:1-2"), (0.4,))]
    winners = {two[0].id: [("opt:3-4", 0.9), ("llama:2-3", 0.7), ("llama:1-2", 0.7)]}
    still, finished = grow(tiny_pool, two, winners, beam=1, max_blocks=4)
    assert [(c.blocks[-1], c.ended) for c in finished] == [("opt:3-4", "terminating"), ("opt:1-2", "exhausted")]
    assert [c.blocks[-1] for c in still] == ["llama:1-2"]  # a tie goes to the smaller id
    assert still[0].worth() == pytest.approx(0.6)
    _, deep = grow(tiny_pool, still, {still[0].id: [("bert:1-2", 0.1)]}, beam=4, max_blocks=4)
    assert deep[0].ended == "depth"
    assert ranked([deep[0], finished[0]])[0] == finished[0]


def test_gains_add_up_and_compatibilities_do_not() -> None:
    short, long = Chain(("a", "b"), (0.5, 0.1)), Chain(("a", "b", "c"), (0.5, 0.1, 0.05))
    assert ranked([short, long]) == [short, long]
    assert ranked([short, long], adding=True) == [long, short]


def test_shortlist_takes_the_best_by_native_score(tiny_pool) -> None:
    score = {"bert:1-2": 0.9, "opt:1-2": 0.8, "roberta:1-2": None}
    listed = shortlist(tiny_pool, Chain(("llama:0-1",)), RULES["paper_distinct"], lambda a, b: score.get(b, 0.1), 3)
    assert listed == ["bert:1-2", "opt:1-2", "bert:2-3"]


@pytest.mark.parametrize("name", ["pool", "pool8"])
def test_gradients_to_adapters_are_the_same_bits_on_a_swapped_pool(tiny_folder, name) -> None:
    """At the least budget no layer stays until the backward pass comes to it."""
    chain = ("vicuna:0-1", "llama:1-2", "vicuna:1-2", "opt:1-2", "bert:1-2", "llama:2-3")
    found = []
    for swapped in (False, True):
        opened = open_pool(tiny_folder / name)
        encoded = cache(lambda model, opened=opened: encode(opened.tokenizer(model), QUESTIONS, 48))
        adapters = {}
        for i in range(1, len(chain)):
            arriving, width = (opened.info(block).width for block in chain[i - 1 : i + 1])
            drawn = torch.Generator().manual_seed(i)
            linear = LinearAdapter(torch.randn(arriving, width, generator=drawn) / arriving**0.5, torch.zeros(width))
            made = CrossAttentionAdapter.start(linear, width, 2, 2, str(i)).requires_grad_()
            adapters[edge(chain[:i], chain[i])] = made
        if swapped:
            probe = Swapper(opened, 10**12, (), record=False)
            least = needed_bytes(dict(probe.engine.sizes))
            probe.close()
            Swapper(opened, least, (), record=False).lend()
        vectors = Walker(opened, readings(opened, encoded), adapters).trained(chain, adapters)
        tensors = [tensor for adapter in adapters.values() for tensor in adapter.parameters()]
        found.append([vectors, *torch.autograd.grad(vectors.square().mean(), tensors)])
        if swapped:
            opened.lender.close()
    assert all(torch.equal(own, other) for own, other in zip(*found, strict=True))
