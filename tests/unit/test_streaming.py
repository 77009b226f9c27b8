"""Weights one tensor at a time: files as safetensors writes them, random members, export and back, quick training."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from assyllm.artifacts import ArtifactError, output_folder
from assyllm.blocks.pool import Pool, write_model, write_pool
from assyllm.cost.shapes import CONFIGS
from assyllm.params import Blocks, Member
from assyllm.quantizer import pool as pool_module
from assyllm.quantizer.export import PACKED, export, restore
from assyllm.zoo import cuda, member, pretrain, random, weights
from assyllm.zoo.cards import ModelCard, write_card
from assyllm.zoo.corpus import TokenRow
from assyllm.zoo.header import KINDS, header
from assyllm.zoo.load import load_model, weight_files
from conftest import tiny_params
from tiny import zoo

BLOCKS = Blocks(edge_to_middle=2.0, blocks_per_model=None)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "ffn_dim": 64, "word_embed_proj_dim": 32, "vocab_size": 400,
         "num_attention_heads": 4, "num_hidden_layers": 4, "max_position_embeddings": 66}  # fmt: skip
CARD = ModelCard(name="m", family="llama", stands_for="llama-7b", source="random", origin="", licence="MIT",
                 parameters=1, weights_sha256="")  # fmt: skip


def small(model: str) -> dict:
    """A recorded hub config at toy width."""
    config = dict(CONFIGS[model])
    return config | {key: value for key, value in SMALL.items() if key in config}


def random_folder(folder, model: str, *names: str):
    with output_folder(folder) as out:
        random.write_random(small(model), out, *names)
        write_card(out, CARD)
    return folder


def test_a_file_written_tensor_by_tensor_is_the_one_that_safetensors_writes(tmp_path) -> None:
    torch.manual_seed(0)
    dtypes = [getattr(torch, name) for name, _ in KINDS.values()]
    tensors = {f"{dtype}.{i}": (torch.randn(3, i) * 9).to(dtype) for i in range(3) for dtype in dtypes}
    tensors["scalar"] = torch.tensor(3.0)
    save_file(tensors, tmp_path / "theirs")
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    weights.write(tmp_path / "ours", kinds, tensors.__getitem__)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    kept = header(tmp_path / "ours")
    assert all(torch.equal(kept[name].read().double(), tensor.double()) for name, tensor in tensors.items())


def test_damaged_files_and_unannounced_tensors_are_one_line(tmp_path) -> None:
    with pytest.raises(ArtifactError, match="not as announced"):
        weights.write(tmp_path / "a", {"w": (torch.float32, (2,))}, lambda name: torch.zeros(3))
    weights.write(tmp_path / "b", {"w": (torch.float32, (2,))}, lambda name: torch.zeros(2))
    kept = header(tmp_path / "b")["w"]
    shutil.copy(tmp_path / "b", tmp_path / "a2")
    (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="cut short"):
        kept.read()
    (tmp_path / "c").write_bytes(b"\x05\0\0\0\0\0\0\0{{{{{")
    with pytest.raises(ArtifactError, match="header is damaged"):
        header(tmp_path / "c")
    (tmp_path / "d").write_bytes((tmp_path / "a2").read_bytes().replace(b'"F32"', b'"F4X"'))
    with pytest.raises(ArtifactError, match="d: w is of dtype F4X, which is not read here"):
        header(tmp_path / "d")
    (tmp_path / "d").write_bytes((tmp_path / "a2").read_bytes().replace(b'"shape":[2]', b'"shape":[3]'))
    for before, after in (
        (b'"shape":[2]', b'"shape":[-2,-1]'),
        (b'"shape":[2]', b'"shape":[2.0]'),
        (b"[0,8]", b"[-4,4]"),
        (b"[0,8]", b"[4,12]"),
    ):
        whole = (tmp_path / "a2").read_bytes()
        length = int.from_bytes(whole[:8], "little")
        head = whole[8 : 8 + length].replace(before, after).strip()
        (tmp_path / "e").write_bytes(len(head).to_bytes(8, "little") + head + whole[8 + length :])
        with pytest.raises(ArtifactError, match="header is damaged"):
            header(tmp_path / "e")
    with pytest.raises(ArtifactError, match="w has 8 bytes, which is not its shape"):
        header(tmp_path / "d")


@pytest.mark.parametrize("model", CONFIGS)
def test_a_random_member_in_shards_loads_and_splits_into_the_same_weights(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(random, "SHARD_BYTES", 30_000)
    folder, family = random_folder(tmp_path / "member", model, "a"), small(model)["model_type"]
    assert len(weight_files(folder)) > 2
    made = load_model(folder, torch.bfloat16)
    values = next(p for name, p in made.named_parameters() if p.dim() == 2 and "embed" not in name)
    assert 0.015 < float(values.detach().float().std()) < 0.025
    with output_folder(tmp_path / "pool") as out:
        write_pool(out, {"m": write_model(out, "m", family, folder, BLOCKS)})
    pool = Pool.open(tmp_path / "pool")
    assert {t.dtype for b in pool.ids for t in pool.tensors(b).values()} == {torch.bfloat16}
    ids = torch.arange(10, 42).view(2, 16)
    hidden, mask = ids, torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        for info in pool.of_model("m"):
            hidden = pool.block(info.id)(hidden, mask)
        expected = load_model(folder)(input_ids=ids, attention_mask=mask.long()).logits
        assert torch.allclose(pool.lm_head("m")(hidden), expected, atol=1e-5)


def test_weights_stored_without_the_prefix_or_under_odd_names_are_found(tmp_path) -> None:
    folder = random_folder(tmp_path / "a", "opt-6.7b", "a")
    tensors = load_file(folder / "model.safetensors")

    def pool_of(name: str, stored: dict) -> dict:
        shutil.copytree(folder, tmp_path / name)
        save_file(stored, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        out = tmp_path / f"pool-{name}"
        write_model(out, "m", "opt", tmp_path / name, BLOCKS)
        return {path.name: load_file(path) for path in sorted((out / "blocks").iterdir())}

    plain = pool_of("plain", tensors)
    short = pool_of("short", {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    for file, block in plain.items():
        assert all(torch.equal(short[file][name], tensor) for name, tensor in block.items())


def test_a_table_packed_in_pieces_is_the_one_packed_whole(monkeypatch) -> None:
    table, settings = torch.randn(50, 40), tiny_params(quantize={"embedding_bits": 4}).quantize
    whole = pool_module._table(table, settings, "table", "cpu")
    monkeypatch.setattr(pool_module, "TABLE_ROWS", 7)
    pieces = pool_module._table(table, settings, "table", "cpu")
    assert {name: part.tolist() for name, part in pieces.items()} == {n: part.tolist() for n, part in whole.items()}


def test_the_same_names_draw_the_same_bytes_and_others_do_not(tmp_path) -> None:
    one, two, other = (random_folder(tmp_path / str(i), "bert-base", name) for i, name in enumerate("aab"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_zoo_source_random_writes_a_member_with_a_tokenizer(tmp_path) -> None:
    p = tiny_params(world={"entities": 12}, zoo={"source": "random"})
    card = member.obtain("bert", p.zoo, p.world, 0, None, tmp_path / "bert", small("bert-base"))
    assert card.source == "random"
    assert card.parameters == load_model(tmp_path / "bert").num_parameters()
    with pytest.raises(ArtifactError, match=r"zoo\.models\.bert\.family"):
        member.obtain("bert", p.zoo, p.world, 0, None, tmp_path / "no", small("opt-6.7b"))
    assert Member(family="bert", stands_for="bert-base", source="random").source == "random"


def test_an_export_comes_back_as_the_rounded_weights(tmp_path) -> None:
    folder = random_folder(tmp_path / "member", "llama-7b", "a")
    size = export(folder, tmp_path / "export")
    export(folder, tmp_path / "once more")
    assert len({(tmp_path / made / PACKED).read_bytes() for made in ("export", "once more")}) == 1
    restore(tmp_path / "export", tmp_path / "restored")
    before, after = load_model(folder), load_model(tmp_path / "restored")
    assert size < 1.3 * before.num_parameters()
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        step = old.detach().abs().max() / 127 if old.dim() == 2 else 0
        assert float((old - new).detach().abs().max()) <= 0.51 * float(step), name
    export(tmp_path / "restored", tmp_path / "again")
    restore(tmp_path / "again", tmp_path / "twice")
    twice = load_model(tmp_path / "twice")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(after.parameters(), twice.parameters(), strict=True))
    with pytest.raises(ArtifactError, match="no exported member"):
        restore(tmp_path / "restored", tmp_path / "no")


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_quick_training_has_the_same_loss_and_leaves_the_model_as_it_was(name) -> None:
    tool = zoo.tokenizer(name)
    model = zoo.model(name, len(tool), tool.pad_token_id).train()
    rows = [TokenRow(np.arange(5, 21, dtype=np.int32) + i, np.zeros(16, dtype=bool)) for i in range(4)]
    recipe = pretrain.Recipe(
        causal=name == "llama", steps=1, batch=4, matrix_learning_rate=0.1, other_learning_rate=0.1
    )
    special, attention = pretrain.Special.of(tool), model.config._attn_implementation
    draws = [np.random.default_rng(0) for _ in range(3)]
    with torch.compiler.set_stance("force_eager"):
        plain = pretrain.loss(model, rows, special, recipe, draws[0])
        with cuda.quick(model, pretrain.cross_entropy) as objective:
            quick = pretrain.loss(model, rows, special, recipe, draws[1], objective)
            assert torch.get_float32_matmul_precision() == "high"
        after = pretrain.loss(model, rows, special, recipe, draws[2])
    assert torch.allclose(plain, quick, rtol=2e-3)  # "high" means TF32 products on some CPUs too
    assert torch.equal(plain, after)
    assert torch.get_float32_matmul_precision() == "highest"
    assert model.config._attn_implementation == attention
    assert all(module._compiled_call_impl is None for module in model.modules())
