"""What a study needs before anything is fetched; five hub models through download and split, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file
from typer.testing import CliRunner

from assyllm import needs
from assyllm import params as P
from assyllm.artifacts import ArtifactError, read_json, verify_folder
from assyllm.cli import app
from assyllm.hub import recorded
from assyllm.hub.ask import Patience
from assyllm.hub.pin import pin
from assyllm.stages import download, split
from assyllm.study import Plan
from conftest import ROOT, tiny_params
from tiny import zoo
from tiny.hub import TOKEN, Hub, Repository

COMMIT = "e" * 40


@pytest.fixture
def study(tiny_folder, tmp_path, hub_cache, monkeypatch):
    """A server with the tiny zoo, one member in .bin shards, one gated; a params.yaml that names it; the cache."""
    repositories = {}
    for name in zoo.FAMILY:
        folder = tmp_path / "served" / name
        shutil.copytree(tiny_folder / "zoo" / name, folder, ignore=shutil.ignore_patterns("manifest.json", "card.json"))
        repositories[f"tiny/{name}"] = Repository(folder, COMMIT, token=TOKEN if name == "roberta" else None)
    bert = repositories["tiny/bert"].folder
    tensors = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    halves = [dict(list(tensors.items())[i::2]) for i in (0, 1)]
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for file, half in zip(names, halves, strict=True):
        torch.save(half, bert / file)
    weight_map = {n: file for file, half in zip(names, halves, strict=True) for n in half}
    (bert / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    raw = P.read_yaml(ROOT / "presets" / "laptop" / "params.yaml")
    raw["zoo"]["models"] = {
        name: {"family": family, "stands_for": zoo.STANDS_FOR[name], "hub_id": f"tiny/{name}", "revision": None,
               "licence": "Apache-2.0"}
        for name, family in zoo.FAMILY.items()
    }  # fmt: skip
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    server = Hub(repositories)
    hub_cache(server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server, path
    server.close()


def test_pin_then_plan_then_download_and_split_give_the_same_tensors(study, tmp_path, tiny_folder):
    server, path = study
    text, _ = needs.report(path, offline=False, pinning=True)
    assert {m.revision for m in P.load(path).zoo.models.values()} == {COMMIT}
    assert TOKEN not in text
    assert re.search(r"roberta +tiny/roberta +e{12} .* yes +the hub", text)
    assert f"{server.address}, asked" in text

    params = P.load(path)
    sections = P.sections_json(params, download.SECTIONS)
    for name in zoo.FAMILY:
        download.run(sections, "code", name, 0, None, None, tmp_path / "zoo" / name)
        verify_folder(tmp_path / "zoo" / name)
        card = read_json(tmp_path / "zoo" / name / "card.json")
        assert (card["source"], card["origin"], card["revision"]) == ("hub", f"tiny/{name}", COMMIT)
    assert not list((tmp_path / "zoo").rglob("*.bin"))
    split.run(P.sections_json(tiny_params(), split.SECTIONS), "code", tmp_path / "zoo", tmp_path / "pool")
    files = sorted((tmp_path / "pool" / "blocks").iterdir())
    assert [f.name for f in files] == sorted(f.name for f in (tiny_folder / "pool" / "blocks").iterdir())
    for file in files:
        here, there = load_file(file), load_file(tiny_folder / "pool" / "blocks" / file.name)
        assert here.keys() == there.keys()
        assert all(torch.equal(here[key], there[key]) for key in here)

    server.repositories["tiny/opt"].licence = "mit"
    text, found = needs.report(path, offline=False, pinning=False)  # now in the cache
    assert "zoo.models.opt.licence: 'Apache-2.0', but the hub says 'mit'" in text
    assert "zoo.models.bert.licence" not in text
    assert sum(m.to_fetch for m in found.models) == 0
    assert [m.name for m in found.models if m.written] == ["bert"]
    assert all(m.shape.vocabulary < 2000 for m in found.models)  # of their own config, not of what they stand for
    _, offline = needs.report(path, offline=True, pinning=False)
    assert [m.said_by for m in offline.models] == ["the cache"] * 5
    assert [m.shape for m in offline.models] == [m.shape for m in found.models]


def test_an_unpinned_model_is_not_fetched(study, tmp_path):
    server, path = study
    with pytest.raises(ArtifactError, match="nothing is recorded of tiny/llama, and the cache has it not"):
        needs.report(path, offline=True, pinning=False)
    sections = P.sections_json(P.load(path), download.SECTIONS)
    with pytest.raises(ArtifactError, match=r"zoo\.models\.opt\.revision: not set; `assyllm zoo plan --pin`"):
        download.run(sections, "code", "opt", 0, None, None, tmp_path / "zoo" / "opt")
    assert server.served == []


def test_a_download_that_does_not_fit_is_refused_before_it_starts(study, tmp_path, monkeypatch):
    server, path = study
    pin(path, {"opt": COMMIT})
    monkeypatch.setattr("assyllm.hub.space.free", lambda folder: 500_000_001)
    sections = P.sections_json(P.load(path), download.SECTIONS)
    with pytest.raises(ArtifactError, match="tiny/opt: fetching it needs"):
        download.run(sections, "code", "opt", 0, None, None, tmp_path / "zoo" / "opt")
    assert not [s for s in server.served if "/resolve/" in s.path]


@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_presets_are_pinned_and_planned_without_a_network(preset, hub_cache, monkeypatch):
    hub_cache("http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    path = ROOT / "presets" / preset / "params.yaml"
    text, found = needs.report(path, offline=False, pinning=False)
    assert "not asked" in text
    models = P.load(path).zoo.models
    for m in found.models:
        record = recorded.record_of(m.origin)
        assert record is not None
        assert (models[m.name].revision, models[m.name].licence) == (record.revision, record.licence)
        assert m.said_by.startswith("recorded")
        assert m.to_fetch > 0
    assert len(re.findall(r"^task \w+: [\w/]+@[0-9a-f]{12}, ", text, re.M)) == 3
    measured = {"sensitivity"} if preset == "paper" else set()  # its widths and its rounding go by it
    assert {s.name.split(" ")[0] for s in found.steps} == {"download", "split", "quantized", *measured}


def test_recorded_sizes_agree_with_the_recorded_shapes():
    from assyllm.cost.shapes import Shape

    for hub_id in recorded.known():
        record = recorded.record_of(hub_id)
        assert record is not None
        assert re.fullmatch("[0-9a-f]{40}", record.revision)
        if record.files:  # stored heads, poolers and names come on top
            weights = Shape.of(record.config).parameters * record.bits // 8
            assert weights < sum(record.files.values()) < 1.02 * weights


def test_a_study_that_cannot_fit_is_refused_early(monkeypatch, hub_cache):
    hub_cache("http://127.0.0.1:9")
    monkeypatch.setattr(needs, "free", lambda folder: 60 * 10**9)
    monkeypatch.setattr(needs, "_ram", lambda: 64 * 10**9)
    done = CliRunner().invoke(app, ["zoo", "plan", "--recorded", str(ROOT / "presets" / "paper" / "params.yaml")])
    assert re.search(r"split pool +42\.1 GB", done.stdout)
    assert re.search(r"sensitivity +104\.7 GB", done.stdout)
    assert re.search(r"sensitivity, a block .* 20\.5 GB", done.stdout)
    assert re.match(r"does not fit: \d+\.\d GB on the disk of .*, 60\.0 GB free$", str(done.exception))
    monkeypatch.setattr(needs, "free", lambda folder: 10**12)
    monkeypatch.setattr(needs, "_ram", lambda: 21 * 10**9)
    found = needs.needs(Plan(ROOT / "presets" / "paper" / "params.yaml"), ROOT, None)
    with pytest.raises(
        ArtifactError, match=r"does not fit: methods on llama alone, at 32 bit .* of memory, 21\.0 GB are"
    ):
        needs.refuse_early(found)


def test_what_is_searched_is_held_and_what_a_curve_takes_is_not(tmp_path, hub_cache):
    hub_cache("http://127.0.0.1:9")
    path = tmp_path / "params.yaml"
    raw = P.read_yaml(ROOT / "presets" / "paper" / "params.yaml")
    raw["settings"]["fp16"] = P.read_yaml(ROOT / "params.yaml")["settings"]["fp16"]
    raw["study"]["default"]["precision"] = {"fitted_on": "base", "settings": ["base", "fp16"]}
    path.write_text(yaml.safe_dump(raw))
    found = needs.needs(Plan(path), tmp_path, None)
    assert [s.name.split()[2] for s in found.steps if s.name.startswith("quantized")] == ["base", "fp16"]
    held = dict(found.memory)["searching, the pool in memory"]
    assert held == next(s.bytes for s in found.steps if s.name.startswith("quantized pool base"))


def test_a_silent_hub_leaves_the_recorded_facts(hub_cache, monkeypatch):
    hub_cache("http://127.0.0.1:9")
    monkeypatch.setattr(needs, "PATIENCE", Patience(attempts=2, sleep=lambda s: None))
    text, _ = needs.report(ROOT / "presets" / "laptop" / "params.yaml", offline=False, pinning=False)
    assert "no connection to http://127.0.0.1:9" in text
    assert "going by what is recorded" in text


PINS = """# a comment
zoo: # models
  models:
    flow: # one line
      { family: opt, hub_id: some/opt, licence: MIT } # after
    held: { family: opt, hub_id: "some/opt", revision: main, licence: MIT }
    empty:
      family: opt # family
      hub_id: some/opt # id
      licence: MIT
    null_:
      revision: null # not yet
      hub_id: some/opt
other: 1 # stays
"""


def test_pins_change_revisions_and_nothing_else(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text(PINS)
    before = yaml.safe_load(PINS)
    names = list(before["zoo"]["models"])
    pin(path, dict.fromkeys(names, COMMIT))
    text = path.read_text()
    after = yaml.safe_load(text)
    for name in names:
        assert after["zoo"]["models"][name] == before["zoo"]["models"][name] | {"revision": COMMIT}
    assert after["other"] == 1
    assert re.findall("#.*", text) == re.findall("#.*", PINS)
    with pytest.raises(ArtifactError, match=r"no zoo\.models\.nobody"):
        pin(path, {"nobody": COMMIT})


def test_a_local_member_is_sized_as_it_lies_there(tmp_path, tiny_folder, monkeypatch):
    """Its path is the study's, or that of the folder of local data; where nothing lies yet, that is said."""
    raw = P.read_yaml(ROOT / "presets" / "real" / "params.yaml")
    assert raw["zoo"]["models"]["llama"]["path"] == "data/external/models/stories260K"
    path = tmp_path / "study" / "params.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    monkeypatch.delenv("ASSYLLM_DATA", raising=False)
    text, found = needs.report(path, offline=True, pinning=False)
    assert "zoo.models.llama: nothing at data/external/models/stories260K yet, sized as llama-7b" in text
    assert found.models[0].shape.parameters > 6e9
    there = read_json(tiny_folder / "zoo" / "llama" / "config.json")["hidden_size"]
    for folder in (path.parent / "data" / "external", tmp_path / "mine"):
        shutil.copytree(tiny_folder / "zoo" / "llama", folder / "models" / "stories260K")
        text, found = needs.report(path, offline=True, pinning=False)
        assert found.models[0].shape.hidden == there
        assert "sized as" not in text
        shutil.rmtree(path.parent / "data", ignore_errors=True)
        monkeypatch.setenv("ASSYLLM_DATA", str(tmp_path / "mine"))
