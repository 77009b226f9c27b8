"""A model of the hub at a pinned commit, in the hub's own cache: resumed, checksummed, whole or not there.

Asking goes through huggingface_hub, whose session, token, cache and variables (``HF_HOME``, ``HF_ENDPOINT``,
``HF_TOKEN``, ``HF_HUB_OFFLINE``) are used. The bytes are streamed here: its client starts a file that a killed job
left at the beginning again, ten gigabytes for a shard of a 7B model.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from assyllm.artifacts import read_text, write_text
from assyllm.hub.ask import COMMIT, Patience, RemoteFile, Repository, ask, patiently, wanted
from assyllm.hub.convert import lacking
from assyllm.hub.space import require
from assyllm.hub.words import HubError, Unreachable, endpoint

_CHUNK = 1 << 20


def cache_folder() -> Path:
    """The hub's cache (``HF_HOME``, ``HF_HUB_CACHE``)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def fetch(hub_id: str, commit: str, patience: Patience | None = None) -> tuple[Path, Repository | None]:
    """A model's folder in the cache, every file checked against the hub's digest.

    Returns:
        The folder, and what the hub said; None where it was not asked (offline, or nobody answers) and the cache
        holds the model whole.

    Raises:
        HubError: one line; the cache holds no half file under a file's name.
        ArtifactError: the disk is too small.
    """
    try:
        repository = ask(hub_id, commit, patience)
    except Unreachable:
        found = _cached(hub_id, commit)
        if found is None:
            raise
        return found, None
    return _snapshot(repository, patience or Patience()), repository


def fetch_safetensors(hub_id: str, revision: str = "main", patience: Patience | None = None) -> Path:
    """As :func:`fetch`, at a commit or at what a branch is today, of a model that needs no conversion.

    Where the hub is not to be asked, a branch is what it was when it was last fetched.

    Raises:
        HubError: as :func:`fetch`, or the weights are no safetensors.
    """
    reference = storage(hub_id) / "refs" / revision
    last = read_text(reference).strip() if reference.is_file() else None
    try:
        repository = ask(hub_id, revision, patience)
    except Unreachable:
        commit = revision if COMMIT.fullmatch(revision) else last
        found = _cached(hub_id, commit) if commit else None
        if found is None:
            raise
        return found
    if not any(f.name.endswith(".safetensors") for f in wanted(repository.files)):
        raise HubError(f"{hub_id}@{revision}: it has no safetensors, and only those are read")
    snapshot = _snapshot(repository, patience or Patience())
    if not COMMIT.fullmatch(revision) and last != repository.commit:
        write_text(reference, repository.commit)
    return snapshot


def _cached(hub_id: str, commit: str) -> Path | None:
    """The folder that the cache has of a model, checked; None where it is not whole."""
    snapshot = storage(hub_id) / "snapshots" / commit
    if not complete(snapshot):
        return None
    check_snapshot(snapshot, hub_id)
    return snapshot


def _snapshot(repository: Repository, patience: Patience) -> Path:
    """The folder of a model as the hub says it is; what is missing or altered is fetched, nothing else is written."""
    snapshot, files = storage(repository.id) / "snapshots" / repository.commit, wanted(repository.files)
    needed = lacking(f.name for f in files)
    if needed:
        raise HubError(f"{repository.id}: {needed}")
    missing = [f for f in files if not (snapshot / f.name).is_file()]
    if not missing and all(_digest(snapshot / f.name, f.digest) == f.digest for f in files):
        return snapshot
    require(sum(f.bytes for f in missing), cache_folder(), f"{repository.id}: fetching it")
    for file in files:
        _link(_bring(repository, file, patience), snapshot / file.name)
    return snapshot


def fetch_one(repository: Repository, name: str, patience: Patience | None = None) -> Path:
    """One small file of a model in the cache, checked as all are.

    Raises:
        HubError: one line; the model has no such file, or it cannot be had.
    """
    found = next((f for f in repository.files if f.name == name), None)
    if found is None:
        raise HubError(f"{repository.id}@{repository.commit[:12]}: no {name}")
    pointer = storage(repository.id) / "snapshots" / repository.commit / name
    _link(_bring(repository, found, patience or Patience()), pointer)
    return pointer


def complete(snapshot: Path) -> bool:
    """Whether a cached snapshot has a configuration, a vocabulary and all weight files that its index names."""
    from assyllm.artifacts import read_json

    names = {path.name for path in snapshot.iterdir() if path.is_file()} if snapshot.is_dir() else set()
    if "config.json" not in names or not names & {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}:
        return False
    for single in ("model.safetensors", "pytorch_model.bin"):
        if single in names:
            return True
        if f"{single}.index.json" in names:
            index = read_json(snapshot / f"{single}.index.json")
            return bool(index.get("weight_map")) and set(index["weight_map"].values()) <= names
    return False


def check_snapshot(snapshot: Path, hub_id: str) -> None:
    """Check cached files against the digests that the cache names its blobs by.

    Raises:
        HubError: a file was altered or cut.
    """
    for file in sorted(snapshot.iterdir()):
        digest = file.resolve().name
        if file.is_symlink() and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest) and _digest(file, digest) != digest:
            raise HubError(f"{hub_id}: {file.name} in the cache is damaged; remove {file.resolve()} and fetch it again")


def _bring(repository: Repository, file: RemoteFile, patience: Patience) -> Path:
    """The blob of a file, fetched if it is not there or not what the hub says."""
    blob = storage(repository.id) / "blobs" / file.digest
    what = f"{repository.id}@{repository.commit[:12]}: {file.name}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.assyllm.incomplete")
    lock_path = cache_folder() / ".locks" / storage(repository.id).name / f"{file.digest}.lock"  # the hub's client's
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with open(lock_path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if blob.is_file() and _digest(blob, file.digest) != file.digest:
            blob.unlink()
        if not blob.is_file():
            if file.bytes >= 1e6:
                print(f"fetching {what} ({file.bytes / 1e6:.1f} MB)", file=sys.stderr, flush=True)
            patiently(lambda: _attempt(repository, file, part, what, patience), what, repository.id, patience, part)
            os.replace(part, blob)
    return blob


def _attempt(repository: Repository, file: RemoteFile, part: Path, what: str, patience: Patience) -> None:
    """Stream what is missing of ``part``, then compare it with the hub's digest."""
    if not part.is_file() or part.stat().st_size < file.bytes:
        _stream(repository, file, part, what, patience)
    size = part.stat().st_size
    if size < file.bytes:
        raise HubError(f"{what}: cut off at {size} of {file.bytes} bytes", again=True)
    if size > file.bytes or _digest(part, file.digest) != file.digest:
        part.unlink()
        raise HubError(f"{what}: what came has not the hub's checksum; nothing of it was kept", again=True)


def _stream(repository: Repository, file: RemoteFile, part: Path, what: str, patience: Patience) -> None:
    import httpx2 as httpx
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    have = part.stat().st_size if part.is_file() else 0
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # lengths are then those of the file
    if have:
        headers["Range"] = f"bytes={have}-"
    url = hf_hub_url(repository.id, file.name, revision=repository.commit, endpoint=endpoint())
    with get_session().stream("GET", url, headers=headers, timeout=patience.timeout_s) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        if "text/html" in response.headers.get("Content-Type", "") and not file.name.endswith(".html"):
            raise HubError(f"{what}: HTML came instead of the file; is there a login page or proxy before the hub?")
        if have and response.status_code != 206:  # the range was ignored: from the beginning
            have = 0
        with open(part, "r+b" if have else "wb") as handle:
            handle.seek(have)
            try:
                for chunk in response.iter_bytes():
                    handle.write(chunk)
                    have += len(chunk)
                    if have > file.bytes:
                        break
            except (httpx.RemoteProtocolError, httpx.ReadError):
                return  # cut; the caller sees how far it came
            finally:
                handle.flush()
                os.fsync(handle.fileno())


def _digest(path: Path, like: str) -> str:
    """The file's sha256, or its git object id where ``like`` is one (40 hex digits)."""
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(usedforsecurity=False)
    if len(like) != 64:
        digest.update(f"blob {path.stat().st_size}\0".encode())
    with open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def storage(hub_id: str) -> Path:
    """A model's folder in the cache."""
    return cache_folder() / f"models--{hub_id.replace('/', '--')}"


def _link(blob: Path, pointer: Path) -> None:
    """The cache's own layout: a relative link from the snapshot to the blob; a copy where links are not to be had."""
    if pointer.is_file() and (pointer.resolve() == blob.resolve() or _digest(pointer, blob.name) == blob.name):
        return
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.with_name(f".{pointer.name}.{uuid.uuid4().hex}.tmp")
    with _gone_at_the_end(temporary):
        try:
            temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:
            shutil.copyfile(blob, temporary)
        os.replace(temporary, pointer)


@contextlib.contextmanager
def _gone_at_the_end(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
