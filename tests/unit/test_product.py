"""The product: a saved model answers like what was assembled, can be built again, and bad input is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from assyllm import cli
from assyllm.adapter import registry
from assyllm.adapter.base import Adapter
from assyllm.adapter.linear import LinearAdapter
from assyllm.artifacts import ArtifactError, manifest_sha, output_folder, verify_folder
from assyllm.assembly.assembled import AssembledModel, assemble
from assyllm.assembly.card import card
from assyllm.assembly.head import Head
from assyllm.assembly.predict import predict, read_asked
from assyllm.assembly.recipe import Recipe, recipe_of
from assyllm.quantizer.pool import open_pool
from assyllm.tasks import own
from assyllm.tasks.record import Question
from tiny import zoo

CHAIN = ("bert:0-1", "opt:1-2", "llama:3-4")
QUESTIONS = zoo.questions("openbookqa", "test", 9) + zoo.questions("boolq", "test", 5)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model(pool, scope: str = "last_block", first: Adapter | None = None) -> AssembledModel:
    adapters = [
        None,
        first or LinearAdapter(normal(24, 40) / 5, normal(40)),
        LinearAdapter(normal(40, 32) / 6, normal(32)),
    ]
    head = Head(normal(2 * 32 if scope == "last_block" else 2 * (24 + 40 + 32), seed=1))
    recipe = recipe_of(pool, CHAIN, adapters, "openbookqa", 48, {"kind": "ridge", "scope": scope, "ridge": 0.1}, 0.7,
                       "abc", {"run": "test"})  # fmt: skip
    blocks, models = [pool.block(b) for b in CHAIN], ("bert", "opt", "llama")
    tokenizers, embeddings = {m: pool.tokenizer(m) for m in models}, {m: pool.embedding(m) for m in models}
    return AssembledModel(blocks, adapters, head, recipe, tokenizers, embeddings).eval()


@pytest.fixture(scope="module")
def saved(tiny_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model(open_pool(tiny_folder / "pool8")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["pool", "pool8"])
@pytest.mark.parametrize("scope", ["last_block", "all_blocks"])
def test_a_saved_model_answers_bit_equal(kind, scope, tiny_folder, tmp_path) -> None:
    made = model(open_pool(tiny_folder / kind), scope)
    made.save_pretrained(tmp_path / "model")
    again = AssembledModel.from_pretrained(str(tmp_path / "model"))
    encoded = made.encode(QUESTIONS)
    assert torch.equal(made(encoded), again(again.encode(QUESTIONS)))
    assert again.predict(QUESTIONS) == made(encoded).argmax(-1).tolist()
    again.save_pretrained(tmp_path / "twice")
    assert manifest_sha(tmp_path / "twice") == manifest_sha(tmp_path / "model")
    allowed = {".safetensors", ".json", ".yaml", ".md", ".txt"}
    assert {part.suffix for part in (tmp_path / "model").rglob("*") if part.is_file()} <= allowed


def test_a_saved_model_is_as_small_as_its_blocks_in_the_pool(saved, tiny_folder) -> None:
    pool = open_pool(tiny_folder / "pool8")
    stored = sum(tensor.nbytes for tensor in load_file(saved / "model.safetensors").values())
    assert stored == sum(pool.info(block).bytes for block in CHAIN)


@pytest.mark.parametrize("kind", ["pool", "pool8"])
def test_recipe_and_pool_give_the_same_bytes_again(kind, tiny_folder, tmp_path) -> None:
    model(open_pool(tiny_folder / kind)).save_pretrained(tmp_path / "model")
    command = ["assemble", str(tmp_path / "model" / "recipe.yaml"), "--pool", str(tiny_folder / kind)]
    done = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "again")])
    assert done.exit_code == 0, done.output
    assert "3 blocks, licence Apache-2.0" in done.output
    assert verify_folder(tmp_path / "again") == verify_folder(tmp_path / "model")
    assert CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "again")]).exit_code == 0
    shutil.copytree(tiny_folder / kind, tmp_path / "pool")
    recipe = (tmp_path / "again" / "recipe.yaml").read_text()
    (tmp_path / "again" / "recipe.yaml").write_text(recipe.replace("openbookqa", "boolq"))
    for other in ("pool", "again"):
        held = sorted((tmp_path / other).iterdir())
        refused = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / other)])
        assert "holds something else than this recipe's model; nothing is written" in str(refused.exception)
        assert sorted((tmp_path / other).iterdir()) == held


@pytest.mark.parametrize("edit", ["order", "max_tokens", "hash"])
def test_a_recipe_that_was_edited_is_refused(edit: str, tiny_folder, tmp_path) -> None:
    """Its head's columns stand in the order of the slices: read in another, they would answer wrongly."""
    model(open_pool(tiny_folder / "pool")).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "recipe.yaml"
    raw = yaml.safe_load(path.read_text())
    if edit == "order":
        raw["slices"] = raw["slices"][:1] + raw["slices"][:0:-1]
    else:
        raw |= {"max_tokens": raw["max_tokens"] - 1} if edit == "max_tokens" else {"fitted_to": ""}
    path.write_text(yaml.safe_dump(raw))
    command = ["assemble", str(path), "--pool", str(tiny_folder / "pool"), "--out", str(tmp_path / "again")]
    refused = CliRunner().invoke(cli.app, command)
    assert "recipe.yaml: its slices, head or max_tokens are not those that" in str(refused.exception)
    assert not (tmp_path / "again").exists()


class Scaling(Adapter):
    """A kind of its own: a pool of scales, to see that nothing but the registry knows the kinds."""

    kind = "scaling"

    def __init__(self, scales: torch.Tensor, weight: torch.Tensor, power: int) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("scales", scales)
        self.register_buffer("weight", weight)

    def config(self) -> dict[str, Any]:
        return {"power": self.power}

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Scaling:
        return cls(tensors["scales"], tensors["weight"], config["power"])

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return (states * self.scales**self.power) @ self.weight


def test_a_further_kind_of_adapter_needs_one_entry(monkeypatch, tiny_folder, tmp_path) -> None:
    pool = open_pool(tiny_folder / "pool")
    made = model(pool, first=Scaling(normal(24), normal(24, 40, seed=2), 2))
    made.save_pretrained(tmp_path / "model")
    with pytest.raises(ArtifactError, match="adapter kind 'scaling': not one of"):
        AssembledModel.from_pretrained(tmp_path / "model")
    monkeypatch.setitem(registry.KINDS, "scaling", Scaling)
    again = AssembledModel.from_pretrained(tmp_path / "model")
    assert torch.equal(made(made.encode(QUESTIONS)), again(again.encode(QUESTIONS)))
    rebuilt = assemble(again.recipe, pool, tmp_path / "model" / "adapters.safetensors")
    assert torch.equal(made(made.encode(QUESTIONS)), rebuilt(rebuilt.encode(QUESTIONS)))


def test_card_names_blocks_licences_and_limits(saved, tiny_pool) -> None:
    text = (saved / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1]) == {
        "library_name": "assyllm", "license": "apache-2.0", "pipeline_tag": "multiple-choice", "tags": ["assyllm"],
    }  # fmt: skip
    assert "| opt | opt-6.7b | 1 to 1 | middle |" in text
    assert "## Licence" in text
    joined = [row.get("adapter", {}).get("kind") for row in Recipe.read(saved / "recipe.yaml").slices]
    assert ("joined by adapters in closed form" in text) == ("cross_attention" not in joined)
    assert "- run: test" in text
    recipe = Recipe.read(saved / "recipe.yaml")
    odd = Recipe(**{**vars(recipe), "licence": "my own", "licences": {"opt": "my own", "bert": "MIT"}})
    assert "license_name: my own" in card(odd)
    starts = [{**row, "kind": "start"} for row in recipe.slices]
    text = card(Recipe(**{**vars(recipe), "slices": starts}))
    assert f"; {len(starts)} of them read the text themselves" in text
    assert "taken to be the strictest: my own" in card(odd)


def test_predict_answers_a_file_of_questions(saved, tmp_path) -> None:
    rows = [{"question": q.question, "choices": list(q.choices), "context": q.context} for q in QUESTIONS]
    rows[0] |= {"id": "first", "answer": 0}
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    command = ["predict", "--model", str(saved), "--questions", str(file)]
    done = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "a.jsonl")])
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["chosen"] for row in found] == AssembledModel.from_pretrained(saved).predict(QUESTIONS)
    assert [row["id"] for row in found[:2]] == ["first", "2"]
    assert all(len(row["scores"]) == len(q.choices) for row, q in zip(found, QUESTIONS, strict=True))
    assert f"{int(found[0]['chosen'] == 0)} of 1 right" in done.output
    assert CliRunner().invoke(cli.app, command).output.startswith((tmp_path / "a.jsonl").read_text())
    assert predict(AssembledModel.from_pretrained(saved), []) == []
    again = CliRunner().invoke(cli.app, [*command, "--out", str(file)])
    assert isinstance(again.exception, ArtifactError)
    assert "the questions themselves" in str(again.exception)
    inside = CliRunner().invoke(cli.app, [*command, "--out", str(saved / "recipe.yaml")])
    assert "recipe.yaml: lies in" in str(inside.exception)
    nowhere = CliRunner().invoke(cli.app, [*command, "--device", "abacus"])
    assert "device: 'abacus' is none of cpu, cuda, cuda:1" in str(nowhere.exception)
    assert verify_folder(saved)


def test_a_question_of_which_nothing_is_left_and_scores_that_are_none(saved) -> None:
    model = AssembledModel.from_pretrained(saved)
    odd = Question("odd", "", "\u200d", ("\u200b", "yes"), 0)
    assert predict(model, [odd])[0]["chosen"] in (0, 1)
    model.head.weight.fill_(float("nan"))
    with pytest.raises(ArtifactError, match="question 'odd': the model's scores are not finite"):
        predict(model, [odd])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"choices": ["a", "b"]}', "line 2: not a question .*question is missing"),
        ('{"question": "x", "choices": ["a"]}', "line 2: not a question .*1 choices"),
        ('{"question": "x", "choices": "ab"}', "line 2: .*choices must be a list of texts"),
        ('{"question": "x", "choices": ["a", "b"], "answer": 2}', "line 2: .*not one of its choices"),
        ('{"question": "x", "choices": ["a", "b"], "anwser": 1}', "line 2: .*unknown key 'anwser'"),
        ("{", "line 2: not a question"),
        ('{"question": null, "choices": ["a", "b"]}', "line 2: .*question must be a text"),
        ('{"question": "x", "choices": ["a", "b"], "context": 5}', "line 2: .*context must be a text"),
        ('{"question": "x", "choices": ["a", "b"], "answer": true}', "line 2: .*answer must be a whole number"),
        ('{"question": "x", "choices": ["a", "b"], "answer": "0"}', "line 2: .*answer must be a whole number"),
        ('{"question": " ", "choices": ["a", "b"]}', "line 2: .*question must be a text"),
        ("5", "line 2: .*a mapping is expected"),
        ('{"question": "\\ud800", "choices": ["a", "b"]}', "line 2: .*half of a surrogate pair"),
        ('{"question": "x", "choices": ["a", "b"], "id": 1}', "line 2: .*the id '1' was given before"),
    ],
)
def test_a_bad_question_is_one_line(line, message, tmp_path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "x", "choices": ["a", "b"]}\n' + line + "\n")
    with pytest.raises(ArtifactError, match=message):
        read_asked(tmp_path / "q.jsonl")


def test_questions_may_hold_any_separator_and_no_question_is_told(tmp_path) -> None:
    path = tmp_path / "q.jsonl"
    row = {"question": "a\u2028b", "choices": ["a", "b"], "context": None}
    path.write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [q.question for q, _ in read_asked(path)] == ["a b"]  # as in training: any white space is one space
    path.write_text("\n")
    with pytest.raises(ArtifactError, match="no questions"):
        read_asked(path)


def test_a_model_is_asked_in_the_text_that_it_was_fitted_on(tmp_path) -> None:
    row = {"question": " what\tis  it ?", "choices": ["a  b ", "c"], "context": "two\nlines", "answer": 1, "id": 0}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    [(asked, answered)] = read_asked(tmp_path / "q.jsonl")
    assert answered
    assert asked == own.question(row, "1")
    assert (asked.id, asked.stem, asked.choices) == ("0", "two lines what is it ?", ("a b", "c"))


def tampered(saved: Path, folder: Path, change) -> Path:
    """A copy of a saved model with one file changed under a manifest that agrees with it."""
    with output_folder(folder) as out:
        for file in saved.iterdir():
            shutil.copyfile(file, out / file.name)
        change(out)
        (out / "manifest.json").unlink()
    return folder


def test_altered_or_missing_files_are_one_line(saved, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    (copy / "recipe.yaml").write_text("format: 1\n")
    with pytest.raises(ArtifactError, match=r"recipe\.yaml: \d+ bytes, \d+ expected"):
        AssembledModel.from_pretrained(copy)
    (copy / "adapters.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"adapters\.safetensors: missing"):
        AssembledModel.from_pretrained(copy)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        AssembledModel.from_pretrained(tmp_path)
    bare = tampered(saved, tmp_path / "a", lambda out: (out / "recipe.yaml").write_text("format: 1\n"))
    with pytest.raises(ArtifactError, match=r"recipe\.yaml: not a recipe"):
        AssembledModel.from_pretrained(bare)
    cut = "format: 1\nslices:\n- {model: bert}\n"
    with pytest.raises(ArtifactError, match="slice 1 has no layer_range"):
        Recipe.from_yaml(cut)
    whole = yaml.safe_load((saved / "recipe.yaml").read_text())
    for wanted, changes in (
        ("slice 2: .* stands before", {"slices": [whole["slices"][0]] * 2}),
        ("head.sketch_dims '12'", {"head": whole["head"] | {"sketch_dims": "12"}}),
    ):
        with pytest.raises(ArtifactError, match=wanted):
            Recipe.from_yaml(yaml.safe_dump(whole | changes))
    torn = tampered(saved, tmp_path / "b", lambda out: (out / "model.safetensors").write_bytes(b"x" * 40))
    with pytest.raises(ArtifactError, match=r"model\.safetensors: not readable as safetensors"):
        AssembledModel.from_pretrained(torn)

    def without_opt(out: Path) -> None:
        config = json.loads((out / "config.json").read_text())
        del config["models"]["opt"]
        (out / "config.json").write_text(json.dumps(config))

    with pytest.raises(ArtifactError, match=r"config\.json: no config of opt"):
        AssembledModel.from_pretrained(tampered(saved, tmp_path / "c", without_opt))


def test_a_pool_that_is_not_the_recipes_is_refused(saved, tiny_folder, tmp_path) -> None:
    recipe, fitted = Recipe.read(saved / "recipe.yaml"), saved / "adapters.safetensors"
    pool = open_pool(tiny_folder / "pool8")
    row = {**recipe.slices[1], "layer_range": [1, 3]}
    gone = Recipe(**{**vars(recipe), "slices": (recipe.slices[0], row, recipe.slices[2])})
    with pytest.raises(ArtifactError, match="no block 'opt:1-3' in the pool"):
        assemble(gone, pool, fitted)
    with pytest.raises(ArtifactError, match="bert:0-1 has bits 32, the recipe says 8"):
        assemble(recipe, open_pool(tiny_folder / "pool"), fitted)
    freer = Recipe(**{**vars(recipe), "licences": {**recipe.licences, "llama": "MIT"}})
    with pytest.raises(ArtifactError, match=r"licences .* the recipe says"):
        assemble(freer, pool, fitted)
    free = Recipe(**{**vars(recipe), "licence": "CC0-1.0"})
    with pytest.raises(ArtifactError, match=r"the strictest licence is .* the recipe says CC0-1\.0"):
        assemble(free, pool, fitted)
    bare = [{key: value for key, value in row.items() if key != "adapter"} for row in recipe.slices]
    with pytest.raises(ArtifactError, match="an adapter before slice 2, which the recipe does not name"):
        assemble(Recipe(**{**vars(recipe), "slices": tuple(bare)}), pool, fitted)
    swapped = tmp_path / "swapped.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(fitted).items()}, swapped)
    with pytest.raises(ArtifactError, match="adapters and head of another model"):
        assemble(recipe, pool, swapped)
    with pytest.raises(ArtifactError, match=r"a head of \d+ features, recipe\.yaml's slices have \d+"):
        assemble(Recipe(**{**vars(recipe), "head": {**recipe.head, "sketch_dims": 8}}), pool, fitted)
    with pytest.raises(ArtifactError, match=r"nowhere\.safetensors: not readable"):
        assemble(recipe, pool, tmp_path / "nowhere.safetensors")
    shutil.copytree(tiny_folder / "pool8", tmp_path / "pool8")
    file = tmp_path / "pool8" / pool.info("opt:1-2").file
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ArtifactError, match="its sha256 is not the manifest's"):
        open_pool(tmp_path / "pool8")
    # the same shapes and bits but other weights: the manifest agrees, the recipe does not
    other = Recipe(**{**vars(recipe), "slices": ({**recipe.slices[0], "sha256": "0" * 64}, *recipe.slices[1:])})
    with pytest.raises(ArtifactError, match=r"bert:0-1 has sha256 .* the recipe says '0000"):
        assemble(other, pool, fitted)
