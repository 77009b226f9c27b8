"""Fetching from a hub that misbehaves: one line each, what can recover recovers, nothing half-written stays."""

from __future__ import annotations

import json
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, snapshot_download
from safetensors.torch import load_file

from assyllm.artifacts import ArtifactError, read_json
from assyllm.comparator import compare
from assyllm.hub import space
from assyllm.hub.ask import Patience, RemoteFile, ask, pinned, wanted
from assyllm.hub.fetch import complete, fetch, fetch_safetensors
from assyllm.hub.member import obtain
from assyllm.hub.words import HubError, without_secrets
from assyllm.params import Member
from tiny import zoo
from tiny.hub import TOKEN, Fault, Hub, Repository

COMMIT, OTHER = "c" * 40, "d" * 40
WEIGHTS = "model.safetensors"


class Waits(list):
    """Records what would have been waited, and waits not."""

    def patience(self, **changes) -> Patience:
        return Patience(**{"attempts": 3, "timeout_s": 5.0, "sleep": self.append} | changes)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def hub(tiny_folder, tmp_path, hub_cache):
    plain = tmp_path / "served"
    shutil.copytree(tiny_folder / "zoo" / "opt", plain, ignore=shutil.ignore_patterns("manifest.json", "card.json"))
    (plain / "modeling_evil.py").write_text("raise SystemExit('remote code ran')")
    (plain / "pytorch_model.bin").write_bytes(b"not wanted where safetensors are")
    server = Hub({"some/opt": Repository(plain, COMMIT), "some/gated": Repository(plain, COMMIT, token=TOKEN)})
    hub_cache(server.address)
    yield server
    server.close()


def cached() -> list[Path]:
    """Every file in the cache under a file's final name, and every snapshot entry."""
    found = Path(constants.HF_HUB_CACHE).rglob("*")
    return sorted(p for p in found if p.is_file() and not p.name.endswith((".incomplete", ".lock")))


def nothing_half_written(hub: Hub) -> None:
    """What has a final name is what the hub has, byte for byte."""
    whole = {p.read_bytes() for p in hub.repositories["some/opt"].folder.iterdir()}
    assert all(path.read_bytes() in whole for path in cached())
    assert not [p for p in Path(constants.HF_HUB_CACHE).rglob("*.tmp")]


def test_a_model_is_fetched_whole_without_code_and_never_twice(hub, waits):
    folder, said = fetch("some/opt", COMMIT, waits.patience())
    names = {path.name for path in folder.iterdir()}
    assert WEIGHTS in names
    assert not names & {"modeling_evil.py", "pytorch_model.bin"}
    assert said is not None
    assert (said.commit, said.licence, said.gated) == (COMMIT, "apache-2.0", False)
    files = [s for s in hub.served if "/resolve/" in s.path]
    assert fetch("some/opt", COMMIT, waits.patience())[0] == folder
    assert [s for s in hub.served if "/resolve/" in s.path] == files
    assert waits == []
    nothing_half_written(hub)
    # the hub's own client finds the same files in the cache
    assert Path(snapshot_download("some/opt", revision=COMMIT, local_files_only=True)) == folder


PERMANENT = {
    "404": (Fault("404"), "has no such"),
    "401": (Fault("401"), "gated: accept its terms on"),
    "403": (Fault("403"), "gated: accept its terms on"),
    "429": (Fault("429", retry_after="7"), "refuses more requests for now (429, asks to wait 7 s) (tried 3 times)"),
    "500": (Fault("500"), "the hub is failing (500) (tried 3 times)"),
    "slow": (Fault("slow"), "the hub stopped answering (tried 3 times)"),
    "wrong": (Fault("wrong", file=WEIGHTS), "has not the hub's checksum; nothing of it was kept (tried 3 times)"),
    "loop": (Fault("loop"), "a loop of redirects"),
    "html": (Fault("html"), "HTML came instead of the file"),
}


@pytest.mark.parametrize("name", PERMANENT)
def test_a_fault_that_stays_is_one_line_and_leaves_nothing_half_written(hub, waits, name):
    fault, words = PERMANENT[name]
    hub.faults = [fault]
    with pytest.raises(ArtifactError) as caught:
        fetch("some/opt", COMMIT, waits.patience(timeout_s=0.2 if name == "slow" else 5.0))
    line = str(caught.value)
    assert words in line
    assert line.startswith(f"some/opt@{COMMIT[:12]}: ")
    assert "\n" not in line
    assert waits == {"429": [7.0, 7.0], "500": [1.0, 2.0], "slow": [1.0, 2.0], "wrong": [1.0, 2.0]}.get(name, [])
    assert not complete(Path(constants.HF_HUB_CACHE) / "models--some--opt" / "snapshots" / COMMIT)
    nothing_half_written(hub)


@pytest.mark.parametrize("kind", ["404", "401", "429", "500", "slow", "loop", "html"])
def test_the_same_for_what_the_hub_says_of_a_model(hub, waits, kind):
    hub.faults = [Fault(kind, where="api")]
    with pytest.raises(ArtifactError) as caught:
        ask("some/opt", COMMIT, waits.patience(timeout_s=0.2 if kind == "slow" else 5.0))
    line = str(caught.value)
    assert line.startswith(f"some/opt@{COMMIT}: ")
    assert "\n" not in line
    assert cached() == []


@pytest.mark.parametrize("kind", ["429", "500", "slow", "cut", "wrong"])
@pytest.mark.parametrize("where", ["api", "file"])
def test_what_passes_recovers(hub, waits, kind, where):
    if where == "api" and kind in ("cut", "wrong"):
        kind = "500"
    hub.faults = [Fault(kind, where=where, times=1, file=WEIGHTS if where == "file" else None)]
    folder, _ = fetch("some/opt", COMMIT, waits.patience(timeout_s=0.2 if kind == "slow" else 5.0))
    assert len(waits) == 1
    assert (folder / WEIGHTS).read_bytes() == (hub.repositories["some/opt"].folder / WEIGHTS).read_bytes()
    nothing_half_written(hub)


def test_a_cut_file_is_resumed_where_it_broke_and_progress_renews_patience(hub, waits):
    hub.faults = [Fault("cut", times=6, file=WEIGHTS)]  # more often than there are attempts
    fetch("some/opt", COMMIT, waits.patience(attempts=2))
    ranges = [s.range for s in hub.served if s.path.endswith(WEIGHTS)]
    starts = [int(r.removeprefix("bytes=").rstrip("-") or 0) for r in ranges]
    assert len(starts) == 7
    assert starts == sorted(set(starts))
    nothing_half_written(hub)


def test_another_process_goes_on_where_a_killed_one_stopped(hub, waits):
    hub.faults = [Fault("cut", times=1, file=WEIGHTS), Fault("404", file=WEIGHTS)]
    with pytest.raises(ArtifactError):
        fetch("some/opt", COMMIT, waits.patience())
    hub.faults, hub.served = [], []
    fetch("some/opt", COMMIT, waits.patience())
    assert [bool(s.range) for s in hub.served if s.path.endswith(WEIGHTS)] == [True]
    nothing_half_written(hub)


def test_two_jobs_fetch_a_file_once(hub, waits):
    with ThreadPoolExecutor(2) as pool:
        folders = [f.result()[0] for f in [pool.submit(fetch, "some/opt", COMMIT, waits.patience()) for _ in "ab"]]
    assert folders[0] == folders[1]
    assert len([s for s in hub.served if s.path.endswith(WEIGHTS)]) == 1
    nothing_half_written(hub)


def test_a_failing_hub_is_not_needed_for_what_the_cache_holds_whole(hub, waits):
    folder, _ = fetch("some/opt", COMMIT, waits.patience())
    hub.faults = [Fault("500", where="api")]
    assert fetch("some/opt", COMMIT, waits.patience()) == (folder, None)


def test_a_file_damaged_in_the_cache_is_fetched_again(hub, waits):
    folder, _ = fetch("some/opt", COMMIT, waits.patience())
    blob = (folder / WEIGHTS).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    fetch("some/opt", COMMIT, waits.patience())
    nothing_half_written(hub)


def test_a_branch_is_what_it_was_where_the_hub_is_not_asked(hub, waits, monkeypatch):
    folder = fetch_safetensors("some/opt", "main", waits.patience())
    assert folder == fetch("some/opt", COMMIT, waits.patience())[0]
    texts = zoo.sentences()
    table = compare("some/opt", f"some/opt@{COMMIT}", texts)
    assert table.compatibility == compare(folder, folder, texts).compatibility
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert compare("some/opt", f"some/opt@{COMMIT}", texts).cka == table.cka
    assert fetch_safetensors("some/opt", "main", waits.patience()) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.repositories["some/opt"].commit = "d" * 40  # the branch moves, and what is there now cannot be had
    hub.faults = [Fault("cut", file=WEIGHTS)]
    (hub.repositories["some/opt"].folder / WEIGHTS).write_bytes(b"another model")
    with pytest.raises(HubError, match="cut off"):
        fetch_safetensors("some/opt", "main", waits.patience())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_safetensors("some/opt", "main", waits.patience()) == folder
    with pytest.raises(HubError, match="some/opt@other: not in the cache, and HF_HUB_OFFLINE is set"):
        fetch_safetensors("some/opt", "other", waits.patience())
    with pytest.raises(
        ArtifactError, match=r"^some/bert: no such folder, and from the hub: some/bert@main: not in the"
    ):
        compare("some/bert", folder, texts)


def test_what_is_whole_in_the_cache_is_asked_once_and_nothing_is_written(hub, waits):
    folder = fetch_safetensors("some/opt", "main", waits.patience())
    cache, asked = Path(constants.HF_HUB_CACHE), len(hub.served)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    shutil.rmtree(cache / ".locks")
    assert fetch_safetensors("some/opt", "main", waits.patience()) == folder
    assert len(hub.served) == asked + 1
    assert not (cache / ".locks").exists()
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == {
        path: when for path, when in before.items() if path.exists()
    }


def test_a_card_with_several_licences(hub, waits):
    hub.repositories["some/opt"].licence = ["mit", "apache-2.0"]
    assert ask("some/opt", COMMIT, waits.patience()).licence == "mit, apache-2.0"


def test_weights_that_are_no_safetensors_are_refused_before_they_are_fetched(hub, waits):
    (hub.repositories["some/opt"].folder / WEIGHTS).unlink()
    with pytest.raises(HubError, match="some/opt@main: it has no safetensors, and only those are read"):
        fetch_safetensors("some/opt", "main", waits.patience())
    assert not cached()


def test_unknown_names_are_told_apart(hub, waits):
    with pytest.raises(ArtifactError, match="no such model"):
        ask("some/nothing", None, waits.patience())
    with pytest.raises(ArtifactError, match="is not a hub id, such as"):
        ask("not an id", None, waits.patience())
    with pytest.raises(ArtifactError, match="no such revision"):
        ask("some/opt", OTHER, waits.patience())
    assert waits == []
    assert ask("some/opt", "main", waits.patience()).commit == COMMIT


def test_a_gated_model_is_explained_and_opened_by_a_token_that_no_message_shows(hub, waits, monkeypatch, capsys):
    with pytest.raises(ArtifactError, match=r"gated: accept its terms on .*/some/gated, .*no token is set"):
        fetch("some/gated", COMMIT, waits.patience())
    monkeypatch.setenv("HF_TOKEN", "hf_anothertokenanother")
    with pytest.raises(ArtifactError, match="the token that is set has no access"):
        fetch("some/gated", COMMIT, waits.patience())
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder, said = fetch("some/gated", COMMIT, waits.patience())
    assert said is not None
    assert said.gated
    assert complete(folder)
    assert {s.token for s in hub.served if "/resolve/" in s.path} >= {TOKEN}
    hub.faults = [Fault("500", where="api")]
    monkeypatch.setattr(constants, "ENDPOINT", hub.address.replace("//", f"//user:{TOKEN}@"))
    with pytest.raises(ArtifactError) as caught:
        ask("some/gated", OTHER, waits.patience())
    said_all = "".join(capsys.readouterr()) + str(caught.value)
    assert "hf_" not in said_all
    assert without_secrets(f"Authorization: Bearer {TOKEN} at http://u:p@host/?X-Amz-Signature=abc") == (
        "Authorization: Bearer *** at http://***@host/***"
    )


def test_a_cached_index_without_files_is_not_a_whole_model(tmp_path):
    for name, text in (("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors.index.json", "{}")):
        (tmp_path / name).write_text(text)
    assert not complete(tmp_path)


def test_a_token_is_not_sent_on_to_the_storage(hub, waits, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    storage = Hub({"some/gated": Repository(hub.repositories["some/gated"].folder, COMMIT)})
    hub.faults = [Fault("elsewhere", file=WEIGHTS, to=storage.address)]
    folder, _ = fetch("some/gated", COMMIT, waits.patience())
    assert complete(folder)
    assert [(s.path.rsplit("/", 1)[-1], s.token) for s in storage.served] == [(WEIGHTS, "")]
    storage.close()


def test_offline_opens_no_socket(hub, waits, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", refuse)
        patched.setattr(socket, "create_connection", refuse)
        patched.setattr(socket, "getaddrinfo", refuse)
        with pytest.raises(ArtifactError, match="not in the cache, and HF_HUB_OFFLINE is set"):
            fetch("some/opt", COMMIT, waits.patience())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder, _ = fetch("some/opt", COMMIT, waits.patience())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.served)
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", refuse)
        assert fetch("some/opt", COMMIT, waits.patience()) == (folder, None)
    assert len(hub.served) == asked
    blob = (folder / WEIGHTS).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=f"{WEIGHTS} in the cache is damaged"):
        fetch("some/opt", COMMIT, waits.patience())


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(hub, waits, monkeypatch):
    monkeypatch.setattr(space, "free", lambda folder: 500_000_010)
    with pytest.raises(ArtifactError, match=r"some/opt: fetching it needs .* MB in .*, 500.0 MB are free"):
        fetch("some/opt", COMMIT, waits.patience())
    assert not [s for s in hub.served if "/resolve/" in s.path]


def test_a_vocabulary_that_cannot_be_read_here_is_said_before_anything_is_fetched(hub, waits, monkeypatch):
    served = hub.repositories["some/opt"].folder
    (served / "tokenizer.json").unlink()
    (served / "tokenizer.model").write_bytes(b"sentencepiece")
    monkeypatch.setattr("assyllm.hub.convert._found", lambda package: package != "sentencepiece")
    with pytest.raises(ArtifactError, match=r"some/opt: it has no tokenizer.json.*assyllm\[hub\]"):
        fetch("some/opt", COMMIT, waits.patience())
    assert not [s for s in hub.served if "/resolve/" in s.path]


def test_only_a_commit_is_pinned():
    assert pinned(COMMIT, "zoo.models.opt.revision") == COMMIT
    for revision in (None, "main", COMMIT[:-1]):
        with pytest.raises(ArtifactError, match=r"^zoo\.models\.opt\.revision: .*assyllm zoo plan --pin"):
            pinned(revision, "zoo.models.opt.revision")


def test_what_is_wanted_of_a_repository():
    def names(*there: str) -> set[str]:
        return {f.name for f in wanted([RemoteFile(name, 1, "0" * 40) for name in there])}

    both = ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
            "model.safetensors.index.json", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "run.py",
            "tokenizer.model", "onnx/model.safetensors", "LICENSE.txt", "README.md", "training_args.bin")  # fmt: skip
    assert names(*both) == {both[0], *both[1:4], "tokenizer.model", "LICENSE.txt", "README.md"}
    pickled = ("config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin",
               "pytorch_model.bin.index.json", "vocab.json", "merges.txt")  # fmt: skip
    assert names(*pickled, "flax_model.msgpack") == set(pickled)


def member(**changes) -> Member:
    return Member(
        **{"family": "opt", "stands_for": "opt-6.7b", "source": "hub", "hub_id": "some/opt", "revision": COMMIT,
           "licence": "Apache-2.0"} | changes
    )  # fmt: skip


def test_pickled_shards_become_the_same_safetensors_bit_for_bit(hub, waits, tmp_path):
    served = hub.repositories["some/opt"].folder
    tensors = load_file(served / WEIGHTS)
    (served / WEIGHTS).unlink()
    (served / "pytorch_model.bin").unlink()
    names = sorted(tensors)
    shards = {
        "pytorch_model-00001-of-00002.bin": {n: tensors[n] for n in names[::2]},
        "pytorch_model-00002-of-00002.bin": {n: tensors[n] for n in names[1::2]},
    }
    shards["pytorch_model-00002-of-00002.bin"]["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"]
    for i, (shard, state) in enumerate(shards.items()):  # the second as before torch 1.6
        torch.save(state, served / shard, _use_new_zipfile_serialization=i == 0)
    pieces = json.loads((served / "tokenizer.json").read_text())["model"]
    (served / "tokenizer.json").unlink()  # as OPT comes: vocab.json and merges.txt
    (served / "vocab.json").write_text(json.dumps(pieces["vocab"]))
    (served / "merges.txt").write_text("\n".join(" ".join(m) for m in pieces["merges"]))
    (served / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    where = {name: shard for shard, state in shards.items() for name in state}
    (served / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    card = obtain("opt", member(), tmp_path / "zoo" / "opt", waits.patience())
    out = tmp_path / "zoo" / "opt"
    made = {}
    for shard in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        made |= load_file(out / shard)
    assert card.revision == COMMIT
    assert made.pop("lm_head.weight").equal(tensors["model.decoder.embed_tokens.weight"])
    assert made.keys() == tensors.keys()
    assert all(made[n].equal(tensors[n]) for n in names)
    assert set(read_json(out / "conversion.json")) == set(shards)
    assert not list(out.glob("*.bin"))
    assert json.loads((out / "tokenizer.json").read_text())["model"]["vocab"] == pieces["vocab"]
    snapshot, _ = fetch(member().hub_id, COMMIT, waits.patience())  # what was made anew was not written into the cache
    assert (snapshot / "tokenizer_config.json").read_bytes() == (served / "tokenizer_config.json").read_bytes()


class Evil:
    """Unpickling it would run a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_a_pickle_with_more_than_tensors_is_refused_and_not_run(hub, waits, tmp_path):
    served = hub.repositories["some/opt"].folder
    (served / WEIGHTS).unlink()
    torch.save({"weight": torch.ones(2), "evil": Evil(tmp_path / "ran")}, served / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"pytorch_model.bin: holds more than tensors, and pickled code is never"):
        obtain("opt", member(), tmp_path / "zoo" / "opt", waits.patience())
    assert not (tmp_path / "ran").exists()
    assert list((tmp_path / "zoo").iterdir()) == []


def test_a_model_that_is_not_what_params_say_is_refused(hub, waits, tmp_path):
    with pytest.raises(ArtifactError, match=r"zoo\.models\.opt\.family: 'bert', but .* says 'opt'"):
        obtain("opt", member(family="bert"), tmp_path / "opt", waits.patience())
    with pytest.raises(ArtifactError, match="is a branch or tag"):
        obtain("opt", member(revision="main"), tmp_path / "opt", waits.patience())
    assert not (tmp_path / "opt").exists()
