"""`compare` fetches with the hub's own client, in a process of its own, as it reads its variables once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tiny.hub import Fault, Hub, Repository

COMMIT = "c" * 40
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
SCRIPT = """
import sys
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 4096  # a fetch resumes at whole chunks (10 MB), more than a tiny model has
from assyllm.artifacts import ArtifactError
from assyllm.zoo.load import fetch, load_model, load_tokenizer
try:
    folder = fetch("someone/tiny", sys.argv[1])
    print("model", load_model(folder).num_parameters(), len(load_tokenizer(folder)))
except ArtifactError as error:
    print("error", error)
"""


@pytest.fixture
def hub(tiny_folder, tmp_path):
    folder = tmp_path / "served"
    shutil.copytree(tiny_folder / "zoo" / "opt", folder, ignore=shutil.ignore_patterns("manifest.json", "card.json"))
    for name in ("pytorch_model.bin", "code.py"):
        (folder / name).write_text("1")
    server = Hub({"someone/tiny": Repository(folder, COMMIT)})
    yield server
    server.close()


def fetch(hub: Hub | None, home: Path, revision: str = COMMIT, **variables: str) -> str:
    """Run ``fetch`` in its own process, as the hub's client reads its variables once; its last line."""
    address = hub.address if hub else "http://127.0.0.1:9"
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | variables
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, revision], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def served(hub: Hub) -> list[tuple[str, int]]:
    """Files that were sent, and from which byte on."""
    sent = [s for s in hub.served if s.method == "GET" and "/resolve/" in s.path]
    return [(s.path.rsplit("/", 1)[-1], int(s.range.removeprefix("bytes=").split("-")[0] or 0)) for s in sent]


def test_a_pinned_revision_is_fetched_once_and_then_found_offline(hub, tmp_path):
    first = fetch(hub, tmp_path)
    assert first.startswith("model ")
    assert {name for name, _ in served(hub)} == set(FILES)  # neither pickles nor code
    sent = len(served(hub))
    assert fetch(hub, tmp_path) == first
    assert len(served(hub)) == sent
    assert fetch(None, tmp_path, HF_HUB_OFFLINE="1") == first


def test_a_torn_fetch_is_taken_up_where_it_broke(hub, tmp_path):
    hub.faults = [Fault("cut", times=1, file="model.safetensors")]
    said = fetch(hub, tmp_path)
    if said.startswith("error"):  # the client gave up: the same command again
        said = fetch(hub, tmp_path)
    assert said.startswith("model ")
    starts = [start for name, start in served(hub) if name == "model.safetensors"]
    assert starts[0] == 0 < starts[-1]


def test_what_cannot_be_had_is_one_line(hub, tmp_path):
    assert fetch(hub, tmp_path, "d" * 40).startswith(f"error someone/tiny@{'d' * 40}: ")
    offline = fetch(None, tmp_path / "empty", HF_HUB_OFFLINE="1")
    assert offline.startswith("error someone/tiny@")
    assert offline.endswith("(HF_HUB_OFFLINE is set)")
