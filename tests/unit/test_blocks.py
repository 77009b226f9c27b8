"""Split and join give the very same logits; the pool is checked before use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from assyllm.artifacts import ArtifactError, verify_folder
from assyllm.blocks.pool import Pool, make_pool
from assyllm.blocks.segment import segments
from assyllm.blocks.split import head_of, join, split
from assyllm.quantizer.calibrate import linears
from assyllm.quantizer.sensitivity import write_sensitivity
from assyllm.zoo.load import load_model
from conftest import tiny_params
from tiny import zoo

BLOCKS = tiny_params().blocks


def batch(tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    made = tokenizer(zoo.sentences()[:6], return_tensors="pt", padding=True)
    return made["input_ids"], made["attention_mask"].bool()


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(32, [8, 4, 4, 4, 4, 8]), (24, [6, 3, 3, 3, 3, 6]), (12, [4, 2, 2, 4]), (4, [1] * 4), (3, [1] * 3), (2, [1, 1])],
)
def test_segments_follow_the_paper(layers, expected) -> None:
    assert segments(layers, BLOCKS) == expected


def test_any_number_of_layers_is_cut_whole_with_edges_not_smaller() -> None:
    for layers in range(2, 100):
        sizes = segments(layers, BLOCKS)
        assert sum(sizes) == layers
        assert min(sizes) >= 1
        assert min(sizes[0], sizes[-1]) >= max(sizes[1:-1], default=1)
    with pytest.raises(ArtifactError, match="1 layer"):
        segments(1, BLOCKS)


@pytest.mark.parametrize("name", ["llama", "opt", "bert", "roberta"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [True, False])
def test_split_and_join_give_bit_equal_logits(name, attention, padded) -> None:
    tool = zoo.tokenizer(name)
    model = zoo.model(name, len(tool), tool.pad_token_id)
    model.set_attn_implementation(attention)
    ids, mask = batch(tool)
    if not padded:
        ids, mask = ids[:, :5], mask[:, :5]
    blocks = split(model, name, name, segments(model.config.num_hidden_layers, BLOCKS))
    assert [b.kind for b in blocks] == ["start", *["middle"] * (len(blocks) - 2), "end"]
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask.long()).logits
        assert torch.equal(join(blocks, head_of(model, name))(ids, mask), expected)


def test_opt_with_narrow_word_vectors_and_norms_after_layers_splits_too() -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(vocab_size=60, hidden_size=24, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=3,
                       num_attention_heads=4, max_position_embeddings=32, do_layer_norm_before=False)  # fmt: skip
    model = OPTForCausalLM(config).eval()
    ids, mask = torch.randint(3, 60, (4, 7)), torch.ones(4, 7, dtype=torch.bool)
    blocks = split(model, "opt", "opt", [1, 1, 1])
    with torch.no_grad():
        logits = join(blocks, head_of(model, "opt"))(ids, mask)
        assert torch.equal(logits, model(input_ids=ids, attention_mask=mask.long()).logits)


def test_layers_that_a_block_cannot_run_or_pack_are_refused(tiny_folder, tiny_pool) -> None:
    model = load_model(tiny_folder / "zoo" / "llama")
    model.config.layer_types = ["full_attention", "sliding_attention"] * 2
    with pytest.raises(ArtifactError, match="mine: layers of sliding_attention; a block's layers share one mask"):
        split(model, "mine", "llama", [2, 2])
    decoder = load_model(tiny_folder / "zoo" / "bert")
    decoder.config.is_decoder = True
    with pytest.raises(ArtifactError, match="mine: is_decoder in its config; the bert family reads both ways"):
        split(decoder, "mine", "bert", [2, 1])
    block = tiny_pool.empty("opt:1-2")
    assert len(linears(block)) == 6
    block.stack[0].fc1 = Conv1D(8, 8)
    with pytest.raises(ArtifactError, match=r"block opt:1-2: stack\.0\.fc1 is a Conv1D; only nn\.Linear is packed"):
        linears(block)


@pytest.mark.parametrize("name", list(zoo.FAMILY))
def test_blocks_from_the_pool_are_the_model(name, tiny_folder, tiny_pool) -> None:
    tool = tiny_pool.tokenizer(name)
    model = zoo.model(name, len(tool), tool.pad_token_id)
    ids, mask = batch(tool)
    joined = join([tiny_pool.block(info.id) for info in tiny_pool.of_model(name)], tiny_pool.lm_head(name))
    with torch.no_grad():
        assert torch.equal(joined(ids, mask), model(input_ids=ids, attention_mask=mask.long()).logits)


def test_pool_knows_its_blocks(tiny_pool) -> None:
    assert tiny_pool.before("opt:2-3") == "opt:1-2"
    assert tiny_pool.before("opt:0-1") is None
    assert tiny_pool.reads_as("vicuna") == tiny_pool.reads_as("llama")
    info = tiny_pool.info("llama:3-4")
    assert info.kind == "end"
    assert info.bytes == 4 * info.parameters == sum(t.nbytes for t in tiny_pool.tensors("llama:3-4").values())
    with pytest.raises(ArtifactError, match="no block"):
        tiny_pool.info("llama:7-9")


def test_an_altered_pool_is_refused(tiny_folder, tmp_path) -> None:
    shutil.copytree(tiny_folder / "pool", tmp_path / "pool")
    file = tmp_path / "pool" / "blocks" / "bert_0-1.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"bert_0-1\.safetensors"):
        Pool.open(tmp_path / "pool")


@pytest.mark.parametrize("ask", ["lm_head", "tokenizer", "of_model", "embedding", "config"])
def test_a_model_that_the_pool_lacks_is_named(ask, tiny_pool) -> None:
    with pytest.raises(ArtifactError, match="no model 'gpt' in the pool"):
        getattr(tiny_pool, ask)("gpt")


def test_wrong_shapes_and_wrong_cuts_are_refused(tiny_pool) -> None:
    with pytest.raises(ArtifactError, match="not one whole model"):
        join([], tiny_pool.lm_head("llama"))
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ArtifactError, match="32"):
        tiny_pool.block("llama:1-2")(torch.zeros(2, 3, 31), mask)
    with pytest.raises(ArtifactError, match="token ids"):
        tiny_pool.block("llama:0-1")(torch.zeros(2, 3, 32), mask)
    tool = zoo.tokenizer("bert")
    model = zoo.model("bert", len(tool), 0)
    with pytest.raises(ArtifactError, match="segments"):
        split(model, "bert", "bert", [1, 1])
    with pytest.raises(ArtifactError, match="llama family"):
        split(model, "bert", "llama", [1, 1, 1])


def test_a_pool_of_ones_own_models_is_the_stages(tiny_folder, tmp_path) -> None:
    folders = {name: tiny_folder / "zoo" / name for name in Pool.open(tiny_folder / "pool").models}
    make_pool(folders, tmp_path / "pool", tiny_params().blocks)
    assert verify_folder(tmp_path / "pool") == verify_folder(tiny_folder / "pool")
    plain = shutil.copytree(folders["opt"], tmp_path / "plain")
    (plain / "card.json").unlink()  # as save_pretrained leaves it
    make_pool({"mine": plain}, tmp_path / "own", tiny_params().blocks)
    own = Pool.open(tmp_path / "own")
    assert (own.models["mine"].licence, own.models["mine"].stands_for) == ("unknown", "mine")
    with pytest.raises(ArtifactError, match="would replace"):
        make_pool({"mine": plain}, plain, tiny_params().blocks)
    (plain / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"plain/tokenizer\.json: no such file \(a fast tokenizer is needed\)"):
        make_pool({"mine": plain}, tmp_path / "other", tiny_params().blocks)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["../outside", "a:b", "a+b", ""])
def test_a_model_s_name_stays_within_its_pool(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no name of a model"):
        make_pool({name: tmp_path}, tmp_path / "pool", tiny_params().blocks)
    assert not list(tmp_path.iterdir())


def test_a_pool_of_no_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="a pool of no models"):
        make_pool({}, tmp_path / "pool", tiny_params().blocks)


def test_scores_do_not_replace_the_pool_that_they_are_of(tiny_folder: Path) -> None:
    before = sorted(path.name for path in (tiny_folder / "pool").iterdir())
    with pytest.raises(ArtifactError, match="would replace"):
        write_sensitivity(tiny_folder / "pool", tiny_folder / "pool", ["a text"], 16, tiny_params().sensitivity)
    assert sorted(path.name for path in (tiny_folder / "pool").iterdir()) == before
