"""The comparator on its own: two models and texts in, scores and a heatmap out."""

from __future__ import annotations

import json
import shutil
import weakref
from itertools import combinations

import pytest
import torch
from typer.testing import CliRunner

from assyllm import cli
from assyllm.artifacts import ArtifactError
from assyllm.comparator import compare, models
from assyllm.comparator.cor import Spread, cor, counts
from assyllm.zoo.load import load_model, load_tokenizer
from tiny import zoo

TEXTS = zoo.sentences()
LAYERS = {"llama": 4, "vicuna": 4, "opt": 4, "bert": 3, "roberta": 4}


@pytest.mark.parametrize(("a", "b"), combinations(zoo.FAMILY, 2))
def test_every_two_families_compare_both_ways(a, b, tiny_folder) -> None:
    there = compare(tiny_folder / "zoo" / a, tiny_folder / "zoo" / b, TEXTS)
    back = compare(str(tiny_folder / "zoo" / b), str(tiny_folder / "zoo" / a), TEXTS)
    assert (len(there.cka), len(there.cka[0])) == (LAYERS[a] + 1, LAYERS[b] + 1)
    for i, j in ((0, 0), (1, 3), (LAYERS[a], LAYERS[b])):
        assert there.cka[i][j] == pytest.approx(back.cka[j][i], abs=1e-5)
        assert 0 < there.cor[i][j] <= 1
        assert there.compatibility[i][j] == pytest.approx(0.5 * there.cka[i][j] + 0.5 * there.cor[i][j])


def test_a_model_is_itself_whatever_stands_around_a_text(tiny_folder) -> None:
    folder = tiny_folder / "zoo" / "bert"
    table = compare(folder, (load_model(folder), load_tokenizer(folder)), TEXTS)
    assert [table.compatibility[i][i] for i in range(4)] == pytest.approx([1] * 4, abs=1e-5)
    padded = compare(folder, folder, [*TEXTS, "ent0 red " * 15])  # a longer row pads all others of its batch
    alone = compare(folder, folder, [*TEXTS[8:], *TEXTS[:8], "ent0 red " * 15])
    assert padded.cka[1][2] == pytest.approx(alone.cka[1][2], abs=1e-4)
    long = compare(folder, folder, [*TEXTS, "ent0 red " * 500])  # longer than the model reads: it loses its end
    assert long.cka[0][0] == pytest.approx(1, abs=1e-5)


def test_a_spread_is_the_histogram_of_all_values_at_once() -> None:
    draws = torch.Generator().manual_seed(0)
    for scale, dtype in ((1, torch.float32), (300, torch.float16), (1e-3, torch.bfloat16)):
        values = (scale * torch.randn(5000, 64, generator=draws) ** 3).to(dtype)
        spread = Spread()
        for part in values.split(700):
            spread.add(part)
        owner = torch.zeros(len(values), dtype=torch.int64)
        whole = counts(values, float(values.double().pow(2).mean().sqrt()), 32, owner, 1)[0]
        found = spread.histogram(32)
        assert found.sum() == whole.sum()
        assert abs(found - whole).sum() <= (values.numel() / 500 if dtype == torch.float32 else 0)
        assert cor(found[None], whole[None]) == pytest.approx(1, abs=1e-5)
    for nothing in (0.0, float("inf"), float("nan")):
        spread = Spread()
        spread.add(torch.tensor([nothing, nothing]))
        assert not spread.histogram(32).any()


def test_models_of_16_bits_score_alike_and_one_is_in_memory_at_a_time(tiny_folder, monkeypatch) -> None:
    there: list[weakref.ref] = []

    def loaded(*given, **named):
        assert not any(model() is not None for model in there)
        model = load_model(*given, **named)
        there.append(weakref.ref(model))
        return model

    monkeypatch.setattr(models, "load_model", loaded)
    a, b = tiny_folder / "zoo" / "llama", tiny_folder / "zoo" / "bert"
    exact, half = (torch.tensor(compare(a, b, TEXTS, dtype=dtype).compatibility) for dtype in ("float32", "bfloat16"))
    off = (exact - half).abs()  # a processor's own 16-bit products: at most .005 to .024 seen
    assert 0 < float(off.max()) < 0.05
    assert float(off.mean()) < 0.02
    assert len(there) == 4


def test_an_unknown_estimator_is_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(ArtifactError, match=r"^estimator: 'nope' is none of unbiased, biased"):
        compare("/nowhere/a", "/nowhere/b", TEXTS, estimator="nope")  # type: ignore[arg-type]


def test_a_model_that_is_given_is_run_itself(tiny_folder) -> None:
    folder = tiny_folder / "zoo" / "llama"
    model, calls = load_model(folder), []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    model.lm_head.eval()
    given = compare(folder, (model, load_tokenizer(folder)), TEXTS)
    with pytest.raises(ArtifactError, match=r"LlamaForCausalLM: a folder, a hub id or \(model, tokenizer\)"):
        compare(folder, model, TEXTS)
    assert calls
    assert (model.training, model.lm_head.training) == (True, False), "as it was given"
    assert given.cka == compare(folder, folder, TEXTS).cka


def test_bf16_and_minibatches_change_little(tiny_folder) -> None:
    a, b = tiny_folder / "zoo" / "llama", tiny_folder / "zoo" / "opt"
    exact = torch.tensor(compare(a, b, TEXTS).cka)
    assert float((torch.tensor(compare(a, b, TEXTS, bf16=True).cka) - exact).abs().max()) < 5e-3
    assert float((torch.tensor(compare(a, b, TEXTS, cka_batch=12).cka) - exact).abs().max()) < 0.2


def test_no_score_is_none_and_grey(tiny_folder, tmp_path) -> None:
    folder = tiny_folder / "zoo" / "opt"
    broken = load_model(folder)
    with torch.no_grad():
        broken.model.decoder.layers[2].fc2.bias.fill_(float("inf"))
    table = compare(folder, (broken, load_tokenizer(folder)), TEXTS)
    assert table.cka[1][1] == pytest.approx(1, abs=1e-5)
    assert table.cka[1][3] is table.cor[1][3] is table.compatibility[1][3] is None
    assert all(row["compatibility"] is None for row in table.rows() if row["layer_b"] >= 3)
    assert "-" in str(table).splitlines()[2]
    stored = json.loads(table.write(tmp_path / "scores.json").read_text())
    assert stored["cka"][1][3] is None
    assert stored["texts"] == len(TEXTS)
    assert table.heatmap(tmp_path / "map.png").read_bytes() == table.heatmap(tmp_path / "map2.png").read_bytes()
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArtifactError, match=r"map\.gif: a heatmap is written as png, pdf, svg"):
        table.heatmap(tmp_path / "map.gif")


def test_equal_texts_have_no_cka_and_too_few_tokens_are_refused(tiny_folder) -> None:
    llama, bert = tiny_folder / "zoo" / "llama", tiny_folder / "zoo" / "bert"
    assert {cell for row in compare(llama, bert, [TEXTS[0]] * 40).cka for cell in row} == {None}
    with pytest.raises(ArtifactError, match="max_tokens 1: none is left beside the 1"):
        compare(llama, bert, TEXTS, max_tokens=1)


def test_texts_of_which_a_tokenizer_leaves_nothing_do_not_count(tiny_folder) -> None:
    llama, bert = tiny_folder / "zoo" / "llama", tiny_folder / "zoo" / "bert"
    read = load_tokenizer(bert)
    empty = next(t for t in ("\u200b", "\x00\x07", "\ufeff") if not read(t, add_special_tokens=False)["input_ids"])
    assert compare(llama, bert, [*TEXTS, *[empty] * 10]) == compare(llama, bert, TEXTS)


def test_bad_input_is_one_line(tiny_folder, tmp_path) -> None:
    folder = tiny_folder / "zoo" / "opt"
    with pytest.raises(ArtifactError, match="3 texts: a comparison needs at least 4"):
        compare(folder, folder, [*TEXTS[:3], "", " "])
    with pytest.raises(ArtifactError, match="nowhere: no such folder"):
        compare(tmp_path / "nowhere", folder, TEXTS)
    with pytest.raises(ArtifactError, match="a list of texts is expected"):
        compare(folder, folder, TEXTS[0])
    wrong_values = (("histogram_bins", 1), ("cka_weight", 1.5), ("cka_batch", 3), ("estimator", "best"))
    for name, value in (*wrong_values, ("dtype", "int8"), ("device", "abacus")):
        with pytest.raises(ArtifactError, match=f"{name}: .*{value}"):
            compare(folder, folder, TEXTS, **{name: value})
    lines = tmp_path / "texts.txt"
    lines.write_text("\n".join(TEXTS))
    wrong = ["compare", str(folder), str(folder), "--texts", str(lines), "--out", str(tmp_path / "map.jpg")]
    with pytest.raises(ArtifactError, match=r"map\.jpg: a heatmap is written as png, pdf, svg"):
        CliRunner().invoke(cli.app, wrong, catch_exceptions=False)
    over = ["compare", str(folder), str(folder), "--texts", str(lines), "--json", str(lines)]
    with pytest.raises(ArtifactError, match=r"texts\.txt: would replace .*texts\.txt, which it is made from"):
        CliRunner().invoke(cli.app, over, catch_exceptions=False)
    assert lines.read_text() == "\n".join(TEXTS)
    own = ["compare", str(folder), str(folder), "--texts", str(lines), "--json", str(folder / "config.json")]
    with pytest.raises(ArtifactError, match=r"config\.json: lies in .*opt, which is read"):
        CliRunner().invoke(cli.app, own, catch_exceptions=False)
    twice = [*own[:-1], str(tmp_path / "same.png"), "--out", str(tmp_path / "same.png")]
    with pytest.raises(ArtifactError, match="both --out and --json"):
        CliRunner().invoke(cli.app, twice, catch_exceptions=False)


def test_both_models_read_as_far_and_it_is_said(tiny_folder) -> None:
    """A model of few positions shortens what the other reads too: scores are of the same texts."""
    llama, bert = (load_model(tiny_folder / "zoo" / name) for name in ("llama", "bert"))
    pairs = [(model, load_tokenizer(tiny_folder / "zoo" / name)) for model, name in ((llama, "llama"), (bert, "bert"))]
    whole = compare(*pairs, TEXTS)
    assert whole.shortened == 0
    bert.config.max_position_embeddings = 6
    cut = compare(*pairs, TEXTS)
    bert.config.max_position_embeddings = 512
    assert cut == compare(*pairs, TEXTS, max_tokens=6)
    assert cut.shortened == len(TEXTS)
    assert f"{len(TEXTS)} texts, {len(TEXTS)} of them shortened" in str(cut)


def test_a_tokenizer_of_another_model_is_refused(tiny_folder) -> None:
    model, tokenizer = load_model(tiny_folder / "zoo" / "opt"), load_tokenizer(tiny_folder / "zoo" / "opt")
    model.resize_token_embeddings(8)
    with pytest.raises(ArtifactError, match=r"its tokenizer gives token \d+, the model has 8"):
        compare((model, tokenizer), tiny_folder / "zoo" / "bert", TEXTS)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_padding_that_a_model_has_no_row_for_changes_nothing(name, tiny_folder, tmp_path) -> None:
    folder, bert = tiny_folder / "zoo" / name, tiny_folder / "zoo" / "bert"
    padded = shutil.copytree(folder, tmp_path / name)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"pad_token": "<beyond>"})
    assert tokenizer.pad_token_id >= load_model(folder).config.vocab_size
    tokenizer.save_pretrained(padded)
    assert load_tokenizer(padded).pad_token_id is None
    wanted = compare(folder, bert, TEXTS)
    for source in (padded, (load_model(folder), tokenizer)):
        assert compare(source, bert, TEXTS).cka == wanted.cka
