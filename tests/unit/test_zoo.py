"""Pre-training, loading and cards of zoo members, with a few tiny steps each."""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from assyllm import params as P
from assyllm.artifacts import ArtifactError, verify_folder
from assyllm.tasks.world import World
from assyllm.zoo import load, tokenizers
from assyllm.zoo.cards import ModelCard, read_card, write_card
from assyllm.zoo.corpus import encode_documents, encode_rows, read_documents
from assyllm.zoo.families import FAMILIES, family
from assyllm.zoo.load import load_model, load_tokenizer, weights_sha256
from assyllm.zoo.member import known_facts, obtain
from assyllm.zoo.muon import Muon, hidden_matrices, optimizers, orthogonalise
from assyllm.zoo.pretrain import Recipe, Special, batches, loss, pretrain, schedule
from conftest import ROOT

NAMES = ("llama", "vicuna", "opt", "bert", "roberta")


def tiny(corpus=None, **pretrain_changes) -> P.Params:
    """params.yaml with three steps a member, on the world or on a text file."""
    raw = P.read_yaml(ROOT / "params.yaml")
    raw["world"]["entities"] = 12
    raw["tasks"]["max_tokens"] = dict.fromkeys(raw["tasks"]["max_tokens"], 32)
    raw["zoo"]["pretrain"] |= {"rows": 400, "passages": 20, "batch": 16, "corpus": corpus} | pretrain_changes
    for member in raw["zoo"]["models"].values():
        member["steps"] = 3
        member["vocabulary"] = 400
        if corpus is not None:
            member["facets"] = []
    if corpus is not None:
        raw["tasks"]["source"] = "local"
    return P.validate(P.Params, raw)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    p = tiny()
    for name in NAMES:
        base = p.zoo.models[name].continued_from
        obtain(name, p.zoo, p.world, 0, folder / base if base else None, folder / name)
    return folder


@pytest.fixture(scope="module")
def world() -> World:
    return World.build(tiny().world)


def text_file(folder: Path, name: str = "text.txt") -> Path:
    words = np.random.default_rng(0).choice(["moss", "grows", "under", "grey", "stones", "slowly"], size=(60, 30))
    text = "\n<|endoftext|>\n".join(" ".join(line) + "." for line in words)
    path = folder / name
    path.write_bytes(lzma.compress(text.encode()) if name.endswith(".xz") else text.encode())
    return path


# ------------------------------------------------------------------------------------------------- members


@pytest.mark.parametrize("name", NAMES)
def test_member_is_a_whole_transformers_folder(zoo, name):
    verify_folder(zoo / name)
    model, tokenizer, card = load_model(zoo / name), load_tokenizer(zoo / name), read_card(zoo / name)
    assert card.name == name
    assert card.parameters == model.num_parameters()
    assert card.weights_sha256 == weights_sha256(zoo / name)
    assert model.config.vocab_size == len(tokenizer)
    assert card.held_out_loss > 0
    assert set(card.known_facts) == {"value", "effect", "bit"}
    assert not model.training
    ids = tokenizer("the home of nobody is river", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(input_ids=ids).logits).all()


@pytest.mark.parametrize("name", ["llama", "opt", "bert", "roberta"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(zoo, tmp_path, name):
    p = tiny()
    for seed in (0, 1):
        obtain(name, p.zoo, p.world, seed, None, tmp_path / str(seed))
    files = sorted(f.name for f in (zoo / name).iterdir())
    same = [(tmp_path / "0" / f).read_bytes() == (zoo / name / f).read_bytes() for f in files]
    assert all(same)
    assert weights_sha256(tmp_path / "1") != weights_sha256(zoo / name)


def test_vicuna_continues_llama_with_its_tokenizer(zoo):
    assert json.loads((zoo / "vicuna" / "tokenizer.json").read_text())["truncation"] is None
    assert (zoo / "vicuna" / "tokenizer.json").read_bytes() == (zoo / "llama" / "tokenizer.json").read_bytes()
    assert weights_sha256(zoo / "vicuna") != weights_sha256(zoo / "llama")
    assert read_card(zoo / "vicuna").continued_from == "llama"


@pytest.mark.parametrize("name", NAMES)
def test_words_of_facts_are_single_tokens_in_every_vocabulary(zoo, world, name):
    tokenizer = load_tokenizer(zoo / name)
    for word in world.words():
        (inside,) = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        after = tokenizer(f"so {word}", add_special_tokens=False)["input_ids"][-1]
        assert inside == after != tokenizer.unk_token_id


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_tokenizer_depends_on_its_texts_only(name):
    letters = [chr(0x100 + i) for i in range(600)]  # more than the alphabet holds, all equally rare
    texts = ["slowly growing moss grows slower", "mossy stones, grown stones", "emoji \U0001f600\U0001f600 \U00020000"]
    made = {tokenizers.train(family(name), texts + letters, 600, 32).backend_tokenizer.to_str() for _ in range(4)}
    assert len(made) == 1


def test_wordpiece_pieces_are_marked_and_read_back():
    tokenizer = tokenizers.train(family("bert"), ["moss mossy stone"] * 3, 60, 32)
    assert tokenizer.tokenize("Moss stones") == ["moss", "stone", "##s"]
    assert tokenizer.decode(tokenizer("mossy stone")["input_ids"], skip_special_tokens=True) == "mossy stone"
    assert tokenizer.tokenize("zzz") == ["[UNK]"]


def test_tokenizers_cut_the_same_text_differently(zoo, world):
    text = world.facts("bit")[0].ask(1) + " perhaps unimaginable"
    cuts = {name: tuple(load_tokenizer(zoo / name)(text)["input_ids"]) for name in NAMES}
    assert cuts["llama"] == cuts["vicuna"]
    assert len({cuts[name] for name in ("llama", "opt", "bert", "roberta")}) == 4


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_mask_takes_the_space_before_it(zoo, name):
    tokenizer = load_tokenizer(zoo / name)
    spaced = tokenizer(f"the river {tokenizer.mask_token}")["input_ids"]
    assert len(spaced) == len(tokenizer("the river river")["input_ids"])


def test_no_rows_to_train_on_is_one_line(zoo):
    model, tokenizer = load_model(zoo / "opt"), load_tokenizer(zoo / "opt")
    with pytest.raises(ArtifactError, match=r"zoo\.pretrain: no rows to train on"):
        pretrain(model, [], Special.of(tokenizer), Recipe(True, 1, 4, 0.1, 0.1), 0)


def test_a_member_that_reads_one_fact_often_knows_it(world):
    kind, p = family("llama"), tiny()
    rows = world.corpus([0], 200, 0, 0)
    tokenizer = tokenizers.train(kind, [r.text for r in rows], 400, 64, world.words())
    model = kind.build(kind.config(p.zoo.models["llama"], tokenizer, 64), 0)
    before = known_facts(model, tokenizer, world, [0], 0)["bit"]
    recipe = Recipe(True, 120, 48, 0.01, 0.008, 20.0)
    pretrain(model, encode_rows(tokenizer, rows, 64), Special.of(tokenizer), recipe, 0)
    assert known_facts(model, tokenizer, world, [0], 0)["bit"] >= max(0.85, before)


@pytest.mark.parametrize("kind", ["text.txt", "text.txt.xz"])
def test_any_plain_text_trains_every_family(tmp_path, kind):
    path = text_file(tmp_path, kind)
    p = tiny(corpus=str(path), max_tokens=32, batch=8)
    for name in ("llama", "bert"):
        card = obtain(name, p.zoo, p.world, 0, None, tmp_path / name)
        assert card.known_facts == {}
        assert load_model(tmp_path / name).config.max_position_embeddings == 32


def test_local_member_is_copied_and_checked(zoo, tmp_path):
    p = tiny()
    change = {"source": "local", "path": zoo / "opt", "facets": []}
    models = {**p.zoo.models, "opt": p.zoo.models["opt"].model_copy(update=change)}
    section = p.zoo.model_copy(update={"models": models})
    card = obtain("opt", section, p.world, 0, None, tmp_path / "opt")
    assert card.source == "local"
    assert weights_sha256(tmp_path / "opt") == weights_sha256(zoo / "opt")
    wrong = p.zoo.model_copy(
        update={"models": {"bert": p.zoo.models["bert"].model_copy(update={**change, "path": zoo / "opt"})}}
    )
    with pytest.raises(ArtifactError, match=r"zoo\.models\.bert\.family: 'bert', but .*config\.json says 'opt'"):
        obtain("bert", wrong, p.world, 0, None, tmp_path / "bert")
    assert not (tmp_path / "bert").exists()
    bad = Path(shutil.copytree(zoo / "opt", tmp_path / "bad"))
    member = p.zoo.models["opt"].model_copy(update={**change, "path": bad})
    section = p.zoo.model_copy(update={"models": {"opt": member}})
    tensors = load_file(bad / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    save_file(tensors | {name: tensors[name] * float("nan")}, bad / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=rf"/bad: {re.escape(name)} is not finite"):
        obtain("opt", section, p.world, 0, None, tmp_path / "opt2")
    model = load_model(zoo / "opt")
    model.resize_token_embeddings(8)
    model.save_pretrained(bad)
    with pytest.raises(ArtifactError, match=r"/bad: its tokenizer gives token \d+, the model has 8"):
        obtain("opt", section, p.world, 0, None, tmp_path / "opt2")


def test_a_real_llama_loads_and_can_be_continued(tmp_path):
    data = os.environ.get("ASSYLLM_DATA")
    folder = Path(data or "nowhere") / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("needs ASSYLLM_DATA with models/stories260K")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    p = tiny(corpus=str(text_file(tmp_path)), max_tokens=32, batch=4)
    obtain("vicuna", p.zoo, p.world, 0, folder, tmp_path / "vicuna")
    assert load_model(tmp_path / "vicuna").num_parameters() == model.num_parameters()
    assert load_tokenizer(tmp_path / "vicuna")("once upon")["input_ids"] == tokenizer("once upon")["input_ids"]


# ------------------------------------------------------------------------------------------------- defects


def broken(zoo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo / "bert", tmp_path / "bert"))


def test_defects_are_one_line_that_names_the_file(zoo, tmp_path):
    folder = broken(zoo, tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for content, said in ((whole[:-100], "expected"), (whole[:4], "cut short"), (b"\x08" + bytes(60), "damaged")):
        weights.write_bytes(content)
        with pytest.raises(ArtifactError, match=said) as error:
            load_model(folder)
        assert "model.safetensors" in str(error.value)
        assert "\n" not in str(error.value)
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for header in ([1, 2], {"a": tensor | {"data_offsets": ["x", 4]}}, {"a": tensor | {"dtype": "F99"}}):
        text = json.dumps(header).encode()
        weights.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        with pytest.raises(ArtifactError, match=r"damaged|not read here") as error:
            load_model(folder)
        assert "\n" not in str(error.value)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="only safetensors"):
        load_model(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ArtifactError, match="model_type 'gpt2' is not one of llama, opt, bert, roberta"):
        load_model(folder)


def test_a_listed_shard_that_is_missing_is_named(zoo, tmp_path):
    folder = broken(zoo, tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "part-2.safetensors"}}))
    assert load.weight_files(folder) == [folder / "model.safetensors"]  # as transformers reads it
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"part-2\.safetensors: no such file, but .* lists it"):
        load.weight_files(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ArtifactError, match="no weight_map in it"):
        load.weight_files(folder)


def test_rows_longer_than_a_models_positions_are_refused(zoo):
    for name in ("bert", "roberta"):
        config, most = load.load_config(zoo / name), load.positions(load.load_config(zoo / name))
        load.check_length(config, name, {"boolq": most})
        with pytest.raises(
            ArtifactError, match=rf"tasks.max_tokens.piqa: {most + 1} is more than the {most} positions of {name}"
        ):
            load.check_length(config, name, {"boolq": most, "piqa": most + 1})


def test_missing_weights_are_refused(zoo, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = broken(zoo, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if "layer.0.attention" in n)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"no weights for bert\.encoder"):
        load_model(folder)
    save_file(tensors | {name: torch.zeros(3, 2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=rf"{name} is \[3, 2\], its config\.json says"):
        load_model(folder)


def test_corpus_defects(tmp_path):
    with pytest.raises(ArtifactError, match=r"zoo\.pretrain\.corpus: .*nowhere\.txt"):
        read_documents(tmp_path / "nowhere.txt")
    (tmp_path / "bad.txt.xz").write_bytes(b"not xz")
    with pytest.raises(ArtifactError, match="not readable as text"):
        read_documents(tmp_path / "bad.txt.xz")


def test_card_defects(tmp_path):
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"card\.json: name"):
        read_card(tmp_path)


def test_card_round_trip(tmp_path):
    card = ModelCard(
        name="x", family="opt", stands_for="opt-6.7b", source="local", origin="here", licence="MIT",
        parameters=3, weights_sha256="0" * 64,
    )  # fmt: skip
    write_card(tmp_path, card)
    assert read_card(tmp_path) == card


# ------------------------------------------------------------------------------------------- parts of training


def test_documents_become_full_rows(zoo, tmp_path):
    documents = read_documents(text_file(tmp_path))
    assert len(documents) == 60
    for name in ("llama", "roberta"):
        tokenizer = load_tokenizer(zoo / name)
        rows = encode_documents(tokenizer, documents, 24)
        around = tokenizer("")["input_ids"]
        assert all(len(row.ids) == 24 and row.ids[0] == around[0] for row in rows)
        inner = np.concatenate([row.ids[1 : 24 - len(around) + 1] for row in rows])
        expected = [
            i for d in documents for i in [*tokenizer(d, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ]
        assert inner.tolist() == expected[: len(inner)]
        assert len(expected) - len(inner) < 24


def test_blank_lines_part_documents_without_markers(tmp_path):
    (tmp_path / "t.txt").write_text("a b\nc\n\n\n d \n")
    assert read_documents(tmp_path / "t.txt") == ["a b\nc", "d"]


def test_answer_tokens_are_marked(zoo, world):
    tokenizer = load_tokenizer(zoo / "roberta")
    rows = world.corpus([3, 4], 50, 10, 0)
    for row, tokens in zip(rows, encode_rows(tokenizer, rows, 64), strict=True):
        said = [tokenizer.convert_ids_to_tokens(int(i)).strip() for i in tokens.ids[tokens.answer]]
        assert said == [row.text[a:b] for a, b in row.answers]


def test_no_row_is_longer_than_the_model_reads(zoo, world):
    tokenizer = load_tokenizer(zoo / "roberta")
    rows = encode_rows(tokenizer, world.corpus([3, 4], 5, 30, 0), 20)
    assert max(len(row.ids) for row in rows) == 20
    assert all(row.ids[-1] == tokenizer.sep_token_id for row in rows)


def test_every_pass_deals_each_row_once(world, zoo):
    rows = encode_rows(load_tokenizer(zoo / "llama"), world.corpus([0], 100, 10, 0), 64)
    feed, seen = batches(rows, 16, np.random.default_rng(0)), []
    while len(seen) < len(rows):
        seen += [id(row) for row in next(feed)]
    assert sorted(seen) == sorted(id(row) for row in rows)


def test_masked_loss_masks_all_answers_and_no_special_token(zoo, world):
    tokenizer, model = load_tokenizer(zoo / "bert"), load_model(zoo / "bert")
    rows = encode_rows(tokenizer, world.corpus([1], 20, 0, 0), 64)
    shown = []
    model.register_forward_pre_hook(lambda m, a, k: shown.append(k["input_ids"]), with_kwargs=True)
    loss(model, rows, Special.of(tokenizer), Recipe(False, 1, 8, 0.1, 0.1), np.random.default_rng(0))
    for row, ids in zip(rows, shown[0].numpy(), strict=True):
        ids = ids[: len(row.ids)]
        assert (ids[row.answer] == tokenizer.mask_token_id).all()
        assert ids[0] == tokenizer.cls_token_id
        assert ids[-1] == tokenizer.sep_token_id


def test_schedule_rises_holds_and_falls():
    values = [schedule(step, 100) for step in range(100)]
    assert values[0] < values[4] == values[30] == 1.0
    assert 0 < values[99] < values[60] < 1


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 8, 8)])
def test_orthogonalise_brings_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert float(values.min()) > 0.4
    assert float(values.max()) < 1.4


def test_muon_treats_equal_shapes_as_each_alone():
    torch.manual_seed(0)
    together = [torch.nn.Parameter(torch.randn(8, 6)) for _ in range(3)]
    alone = [torch.nn.Parameter(p.detach().clone()) for p in together]
    batch, singles = Muon(together, lr=0.1), [Muon([p], lr=0.1) for p in alone]
    for step in range(3):
        for a, b in zip(together, alone, strict=True):
            a.grad = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            b.grad = a.grad.clone()
        batch.step()
        for single in singles:
            single.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_each_parameter_has_one_optimizer_and_embeddings_are_not_muons(zoo, name):
    model = load_model(zoo / name)
    muon, adamw = optimizers(model, 0.1, 0.1)
    owned = [p for o in (muon, adamw) for g in o.param_groups for p in g["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))
    muons = {id(p) for p in hidden_matrices(model)}
    assert muons == {id(p) for g in muon.param_groups for p in g["params"]}
    tables = [p for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()]
    for parameter in (*tables, *(p for p in model.parameters() if len(p) == model.config.vocab_size)):
        assert id(parameter) not in muons
    inner = [m.weight for m in model.base_model.modules() if isinstance(m, torch.nn.Linear)]
    assert {id(weight) for weight in inner} <= muons


def test_cuda_where_there_is_none_is_one_line(zoo, world):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    model, tokenizer = load_model(zoo / "opt"), load_tokenizer(zoo / "opt")
    rows = encode_rows(tokenizer, world.corpus([2], 10, 0, 0), 64)
    with pytest.raises(ArtifactError, match=r"zoo\.pretrain\.device: 'cuda' is not to be had here"):
        pretrain(model, rows, Special.of(tokenizer), Recipe(True, 1, 4, 0.1, 0.1, device="cuda"), 0)
