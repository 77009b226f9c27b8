"""What the hub says of a model, asked with patience: commit, files, sizes, digests, licence."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from assyllm.hub.words import HubError, endpoint, explained

COMMIT = re.compile(r"[0-9a-f]{40}")
# text and tensors; no code, and of the weights one format only
_TEXTS = re.compile(r"[\w.-]+\.(json|model|txt)|LICENSE[\w.-]*|USE_POLICY[\w.-]*|README\.md")
_SAFE = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLED = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
_INDEX = re.compile(r"(model\.safetensors|pytorch_model\.bin)\.index\.json")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a request is tried again, and how long is waited (seconds); waits double."""

    attempts: int = 6
    first_s: float = 1.0
    longest_s: float = 60.0  # of a wait; the hub's own Retry-After counts up to ten times this
    timeout_s: float = 30.0  # of silence
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository; ``digest`` is the sha256 of a large file, the git object id of a small one."""

    name: str
    bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Repository:
    """What the hub says of a model at a commit."""

    id: str
    commit: str
    files: tuple[RemoteFile, ...]
    gated: bool
    licence: str | None


def pinned(revision: str | None, key: str) -> str:
    """The revision, if it is a commit.

    Raises:
        HubError: it is absent, or a branch or tag, which may name something else tomorrow.
    """
    if revision is None or not COMMIT.fullmatch(revision):
        said = "not set" if revision is None else f"{revision!r} is a branch or tag"
        raise HubError(f"{key}: {said}; `assyllm zoo plan --pin` writes the commit of today into params.yaml")
    return revision


def ask(hub_id: str, revision: str | None, patience: Patience | None = None) -> Repository:
    """What the hub says of a model: commit, files with sizes and digests, licence, whether it is gated.

    Raises:
        HubError: one line that names the model.
    """
    patience = patience or Patience()
    what = f"{hub_id}@{revision}" if revision else hub_id

    def once() -> Repository:
        from huggingface_hub import HfApi

        said = HfApi(endpoint=endpoint()).model_info(
            hub_id, revision=revision, files_metadata=True, timeout=patience.timeout_s
        )
        files = [
            RemoteFile(s.rfilename, int(s.size), s.lfs.sha256 if s.lfs else str(s.blob_id))  # type: ignore[arg-type]
            for s in said.siblings or ()
        ]
        card: Any = said.card_data or {}
        said_licence = card.get("license")
        return Repository(
            id=hub_id,
            commit=str(said.sha),
            files=tuple(files),
            gated=bool(said.gated),
            licence=", ".join(said_licence) if isinstance(said_licence, list) else said_licence,
        )

    return patiently(once, what, hub_id, patience)


def wanted(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """The files that a model is made of here: safetensors where there are any, else ``.bin`` shards; never code."""
    top = [file for file in files if "/" not in file.name]
    kind = _SAFE if any(_SAFE.fullmatch(f.name) for f in top) else _PICKLED
    index = "model.safetensors" if kind is _SAFE else "pytorch_model.bin"
    return [
        f
        for f in top
        if kind.fullmatch(f.name)
        or (_INDEX.fullmatch(f.name) and f.name.startswith(index))
        or (_TEXTS.fullmatch(f.name) and not _INDEX.fullmatch(f.name))
    ]


def patiently(once: Callable[[], _T], what: str, hub_id: str, patience: Patience, part: Path | None = None) -> _T:
    """Call ``once`` until it succeeds; an attempt that made ``part`` longer does not count."""
    left, wait = patience.attempts, patience.first_s
    longest = 0
    while True:
        try:
            return once()
        except OSError as error:
            if error.errno:  # a full disk, no permission
                raise HubError(f"{what}: {os.strerror(error.errno)}") from None
            failed = explained(error, what, hub_id)
        except Exception as error:
            failed = explained(error, what, hub_id)
        reached = part.stat().st_size if part is not None and part.is_file() else 0
        if reached > longest:
            longest, left, wait = reached, patience.attempts, patience.first_s
        left -= 1
        asked = failed.wait_s or 0.0
        if not failed.again or asked > 10 * patience.longest_s:
            raise failed from None
        if left <= 0:
            raise type(failed)(f"{failed} (tried {patience.attempts} times)") from None
        patience.sleep(max(asked, wait))
        wait = min(2 * wait, patience.longest_s)
