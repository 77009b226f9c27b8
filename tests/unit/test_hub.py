"""Fetching from the hub, proved on a small server that speaks the hub's protocol on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "c" * 40
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
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


class Hub(ThreadingHTTPServer):
    """One public model, ``someone/tiny`` at :data:`COMMIT`; ``torn`` cuts the first answer of its weights."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.torn, self.served = folder, 0, []


class Handler(BaseHTTPRequestHandler):
    """The three requests that ``snapshot_download`` makes."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        """A file's size, hash and commit."""
        self.answer(body=False)

    def do_GET(self) -> None:
        """The model's file list, or a file."""
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/someone/tiny"):
            if COMMIT not in path:
                return self.send(404, b'{"error":"Revision Not Found"}', {"X-Error-Code": "RevisionNotFound"})
            names = sorted([*FILES, "pytorch_model.bin", "code.py"])
            if "/tree/" in path:
                sizes = {n: (self.server.folder / n).stat().st_size if n in FILES else 1 for n in names}
                listed = [{"type": "file", "path": n, "oid": "0" * 40, "size": sizes[n]} for n in names]
                return self.send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})
            info = {"id": "someone/tiny", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        name = path.rsplit("/", 1)[-1]
        file = self.server.folder / name
        if name not in FILES or not path.startswith(f"/someone/tiny/resolve/{COMMIT}/"):
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if not body:
            return self.send(200, content, headers, body=False)
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked.startswith("bytes=") else 0
        self.server.served.append((name, start))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if name == "model.safetensors" and self.server.torn:
            self.server.torn -= 1
            return self.send(200, content, headers, cut=len(content) // 2)
        return self.send(206 if start else 200, content[start:], headers)

    def send(self, status: int, content: bytes, headers: dict, body: bool = True, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


@pytest.fixture
def hub(tiny_folder):
    server = Hub(tiny_folder / "zoo" / "opt")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(hub: Hub | None, home: Path, revision: str = COMMIT, **variables: str) -> str:
    """Run ``fetch`` in its own process, as the hub's client reads its variables once; its last line."""
    address = f"http://127.0.0.1:{hub.server_port}" if hub else "http://127.0.0.1:9"
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | variables
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, revision], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_pinned_revision_is_fetched_once_and_then_found_offline(hub, tmp_path):
    first = fetch(hub, tmp_path)
    assert first.startswith("model ")
    assert {name for name, _ in hub.served} == set(FILES)  # neither pickles nor code
    served = len(hub.served)
    assert fetch(hub, tmp_path) == first
    assert len(hub.served) == served
    assert fetch(None, tmp_path, HF_HUB_OFFLINE="1") == first


def test_a_torn_fetch_is_taken_up_where_it_broke(hub, tmp_path):
    hub.torn = 1
    said = fetch(hub, tmp_path)
    if said.startswith("error"):  # the client gave up: the same command again
        said = fetch(hub, tmp_path)
    assert said.startswith("model ")
    starts = [start for name, start in hub.served if name == "model.safetensors"]
    assert starts[0] == 0 < starts[-1]


def test_what_cannot_be_had_is_one_line(hub, tmp_path):
    assert fetch(hub, tmp_path, "d" * 40).startswith(f"error someone/tiny@{'d' * 40}: ")
    offline = fetch(None, tmp_path / "empty", HF_HUB_OFFLINE="1")
    assert offline.startswith("error someone/tiny@")
    assert offline.endswith("(HF_HUB_OFFLINE is set)")
