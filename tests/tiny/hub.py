"""A hub on this machine: repositories from folders, the part of the protocol that huggingface_hub speaks, and faults.

``GET /api/models/<id>[/revision/<rev>]`` and ``.../tree/<rev>`` (sizes, digests, gated), ``HEAD`` and ``GET
/<id>/resolve/<rev>/<file>`` (ETag, X-Repo-Commit, X-Linked-Etag and -Size, Range). A fault is played on the next
``times`` requests that it is for, then the server behaves.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

TOKEN = "hf_testtokentesttoken"
LARGE = (".safetensors", ".bin", ".model")  # stored with LFS, so named by sha256


@dataclass
class Fault:
    """What goes wrong: 404, 401, 403, 429, 500, slow, cut, wrong, loop, html; where: api or file; how often.

    ``elsewhere`` is no fault: large files are sent by another server (``to``), as the hub's storage does.
    """

    kind: str
    where: str = "file"
    times: int = 10**6
    file: str | None = None
    retry_after: str | None = None
    to: str | None = None


@dataclass
class Repository:
    """A model on the server; with ``token`` it is gated."""

    folder: Path
    commit: str
    token: str | None = None
    licence: str | list[str] = "apache-2.0"
    branches: tuple[str, ...] = ("main",)


def git_sha1(content: bytes) -> str:
    """The object id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Served:
    """A request as it came: method, path, range."""

    method: str
    path: str
    range: str = ""
    token: str = ""


class Hub(ThreadingHTTPServer):
    """``repositories`` maps ids to what is served; ``faults`` are played in order; ``served`` is what was asked."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Repository]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.faults: list[Fault] = []
        self.served: list[Served] = []
        self.stop = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        """End it, stalled answers too."""
        self.stop.set()
        self.shutdown()
        self.server_close()

    def fault(self, where: str, name: str = "") -> Fault | None:
        """The fault to play on this request, one time less."""
        for fault in self.faults:
            if fault.where == where and fault.times and fault.file in (None, name):
                fault.times -= 1
                return fault
        return None


@dataclass
class Answer:
    """A response before it is sent."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None  # announced; more than the body cuts the connection


def refused(status: int, code: str = "", **headers: str) -> Answer:
    """An error as the hub words it."""
    named = {"X-Error-Code": code} if code else {}
    return Answer(status, json.dumps({"error": code or "refused"}).encode(), named | headers)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        """Metadata of a file."""
        self.send(self.answer(), body=False)

    def do_GET(self) -> None:
        """A model's description, or a file."""
        self.send(self.answer(), body=True)

    def answer(self) -> Answer:
        """What this request gets, faults included."""
        path = unquote(self.path.split("?")[0])
        asked = self.headers.get("Range", "")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.server.served.append(Served(self.command, path, asked, token))
        if path.startswith("/api/models/"):
            return self.played(self.server.fault("api")) or self.described(path.removeprefix("/api/models/"))
        found, _, rest = path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if path.startswith("/again/"):
            return Answer(302, headers={"Location": path})
        repository = self.server.repositories.get(found)
        if repository is None:
            return refused(404, "RepoNotFound")
        if repository.token is not None and token != repository.token:
            return refused(403 if token else 401, "GatedRepo")
        fault = self.server.fault("file", name) if self.command == "GET" else None
        return self.played(fault) or self.file(repository, revision, name, fault)

    def played(self, fault: Fault | None) -> Answer | None:
        """A fault that replaces the whole answer."""
        if fault is None:
            return None
        if fault.kind == "loop":
            return Answer(302, headers={"Location": "/again/and/again"})
        if fault.kind == "elsewhere":
            return Answer(302, headers={"Location": f"{fault.to}{self.path}"})
        if fault.kind == "html":
            return Answer(200, b"<html><body>Please log in</body></html>", {"Content-Type": "text/html"})
        if fault.kind == "slow":
            self.server.stop.wait(5)  # longer than anyone waits here
            return refused(500)
        if fault.kind.isdigit():
            wait = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            return refused(int(fault.kind), "GatedRepo" if fault.kind in ("401", "403") else "", **wait)
        return None

    def described(self, rest: str) -> Answer:
        name, _, revision = rest.replace("/tree/", "/revision/").partition("/revision/")
        repository = self.server.repositories.get(name)
        if repository is None:
            return refused(404, "RepoNotFound")
        if revision and revision.strip("/") not in (repository.commit, *repository.branches):
            return refused(404, "RevisionNotFound")
        rows = []
        for file in sorted(p for p in repository.folder.iterdir() if p.is_file()):
            content = file.read_bytes()
            row = {"rfilename": file.name, "size": len(content), "blobId": git_sha1(content)}
            if file.suffix in LARGE:
                row["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            rows.append(row)
        if "/tree/" in rest:
            listed = [{"type": "file", "path": r["rfilename"], "oid": r["blobId"], "size": r["size"]} for r in rows]
            return Answer(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})
        said = {
            "id": name,
            "sha": repository.commit,
            "siblings": rows,
            "gated": "manual" if repository.token else False,
            "private": False,
            "tags": [],
            "downloads": 0,
            "cardData": {"license": repository.licence},
        }
        return Answer(200, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def file(self, repository: Repository, revision: str, name: str, fault: Fault | None) -> Answer:
        path = repository.folder / name
        if revision not in (repository.commit, *repository.branches):
            return refused(404, "RevisionNotFound")
        if "/" in name or not path.is_file():
            return refused(404, "EntryNotFound", **{"X-Repo-Commit": repository.commit})
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest() if path.suffix in LARGE else git_sha1(content)
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if path.suffix in LARGE:
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        if fault is not None and fault.kind == "wrong":
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked.startswith("bytes=") else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        cut = body[: len(body) // 2] if fault is not None and fault.kind == "cut" else body
        return Answer(206 if start else 200, cut, headers, length=len(body))

    def send(self, answer: Answer, body: bool) -> None:
        """Write it; where less comes than was announced, the connection closes."""
        length = len(answer.body) if answer.length is None else answer.length
        try:
            self.send_response(answer.status)
            for key, value in {**answer.headers, "Content-Length": str(length)}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(answer.body)
            if body and length > len(answer.body):
                self.wfile.flush()
                self.close_connection = True
        except OSError:  # the client went away
            self.close_connection = True
