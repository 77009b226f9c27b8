"""Files that are whole or absent: sha256 manifests, atomic writes under unique temporary names.

A killed job leaves at most a hidden temporary beside its output; a folder's is removed by the next job that makes this
output. A job that outlived its parent and finishes late cannot harm the output that a second run has meanwhile made (it
is replaced by equal bytes or discarded).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

MANIFEST = "manifest.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room
STALE_AFTER_S = 24 * 3600  # where the file system locks no folders


class ArtifactError(Exception):
    """Bad input, said in one line that names the key, file or client at fault."""


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Hex sha256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def check_target(path: Path) -> None:
    """Whether a file can be written there, before what goes into it is worked out; its folder is made.

    Raises:
        ArtifactError: there is something else than a file, or the folder cannot be had or written to.
    """
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path}: not a file; nothing is written")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{path.parent}: {error.strerror}; nothing is written") from None
    if not os.access(path.parent, os.W_OK):
        raise ArtifactError(f"{path.parent}: not writable; nothing is written")


def check_apart(out: Path, *read: Path) -> None:
    """What is written may not replace what it is made from.

    Raises:
        ArtifactError: ``out`` is one of the folders that are read, or one of them lies in it.
    """
    for folder in read:
        if Path(out).resolve() in (Path(folder).resolve(), *Path(folder).resolve().parents):
            raise ArtifactError(f"{out}: would replace {folder}, which it is made from; nothing is written")


def check_outside(out: Path, *folders: Path) -> None:
    """What is written may not lie in a folder that it is made from.

    Raises:
        ArtifactError: naming the folder.
    """
    for folder in folders:
        if Path(folder).resolve() in Path(out).resolve().parents:
            raise ArtifactError(f"{out}: lies in {folder}, which is read; nothing is written")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, creating its folder.

    Raises:
        ArtifactError: there is something else than a file, or the folder cannot be had.
    """
    write_files({Path(path): content})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write several files, each whole, or where one has no room none at all (errors as :func:`write_bytes`)."""
    for path in contents:
        check_target(path)
    temporaries = {path: _temporary(path) for path in contents}
    try:
        for path, content in contents.items():
            with open(temporaries[path], "wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}; nothing is written") from None
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """A UTF-8 text file (a byte order mark left out); what cannot be read is one :class:`ArtifactError` line."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ArtifactError(f"{path}, line {line}: not UTF-8 text") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file: they end at newlines only, not at U+2028 and its like, which texts may hold."""
    text = read_text(path)
    return text.removesuffix("\n").split("\n") if text else []


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write JSON with sorted keys (stable bytes), whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON object; a missing or broken file is one :class:`ArtifactError` line."""
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise ArtifactError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: a JSON object is expected")
    return value


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


@contextlib.contextmanager
def output_folder(folder: Path, unlisted: tuple[str, ...] = (), like: str = "") -> Iterator[Path]:
    """Give a temporary folder to write into; on success rename it to ``folder`` with a sha256 manifest.

    ``unlisted`` names files that the manifest leaves out (wall times differ from run to run). ``like`` is a file that
    every folder of this kind holds: one without it is of another kind and stays. If the body raises, ``folder`` is
    untouched. If ``folder`` exists with an equal manifest it stays as it is.

    Raises:
        ArtifactError: ``folder`` is a file, is of another kind, or holds files and no manifest, so that somebody else
            made them.
    """
    folder = Path(folder)
    if like and (folder / MANIFEST).is_file() and not (folder / like).is_file():
        raise ArtifactError(f"{folder}: there already, and something else (no {like} in it); nothing is written")
    if folder.exists() and not (folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir()))):
        raise ArtifactError(f"{folder}: there already, and not made by assyllm; nothing is written")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder.parent}: {error.strerror}; nothing is written") from None
    _sweep(folder)
    temporary, mark = _held(folder)
    try:
        with _told(folder, temporary):
            yield temporary
        files = {
            str(p.relative_to(temporary)): {"sha256": sha256_file(p), "bytes": p.stat().st_size}
            for p in _files(temporary)
            if p.name not in unlisted
        }
        write_json(temporary / MANIFEST, {"files": files})
        if (folder / MANIFEST).exists() and read_json(folder / MANIFEST) == {"files": files}:
            return
        for _ in range(10):
            if folder.exists():
                old = _temporary(folder)
                with contextlib.suppress(FileNotFoundError):
                    os.rename(folder, old)
                shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.rename(temporary, folder)
                return
        raise ArtifactError(f"{folder}: something else keeps writing there; stop it and run again")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(mark)


@contextlib.contextmanager
def _told(folder: Path, temporary: Path) -> Iterator[None]:
    """What goes wrong in ``temporary`` is told of the folder that is made; a library that finds no room names none."""
    try:
        yield
    except ArtifactError as error:
        if str(temporary) not in str(error):
            raise
        raise ArtifactError(str(error).replace(str(temporary), str(folder))) from None
    except Exception as error:  # OSError, safetensors' and shutil's own
        found = re.search("|".join(re.escape(os.strerror(code)) for code in FULL), str(error))
        if found is None:
            raise
        raise ArtifactError(f"{folder}: {found[0]}; nothing is written") from None


def _held(folder: Path) -> tuple[Path, int]:
    """A new temporary of ``folder``, and a file descriptor that locks it until this process ends, however it ends."""
    while True:
        temporary = _temporary(folder)
        temporary.mkdir()
        with contextlib.suppress(FileNotFoundError):
            mark = os.open(temporary, os.O_RDONLY)
            if _lock(mark) is not False and temporary.exists():
                return temporary, mark
            os.close(mark)


def _sweep(folder: Path) -> None:
    """Remove the temporaries of ``folder`` that killed jobs left behind: nobody locks them."""
    for leftover in folder.parent.glob(f".{folder.name}.{'[0-9a-f]' * 32}.tmp"):
        with contextlib.suppress(OSError):  # somebody else's, or gone
            mark = os.open(leftover, os.O_RDONLY)
            locked, age = _lock(mark), time.time() - os.fstat(mark).st_mtime
            if locked or (locked is None and age > STALE_AFTER_S):
                shutil.rmtree(leftover, ignore_errors=True)
            os.close(mark)


def _lock(mark: int) -> bool | None:
    """Whether a folder could be locked: not where another process has; None where the file system locks no folders."""
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def verify_folder(folder: Path) -> dict[str, dict]:
    """Check every file of ``folder`` against its manifest and return the manifest's ``files``.

    Raises:
        ArtifactError: a file is missing, truncated or altered, or there is no manifest.
    """
    folder = Path(folder)
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise ArtifactError(f"{folder / MANIFEST}: not a manifest (no files)")
    if not files or not all(isinstance(e, dict) and {"bytes", "sha256"} <= e.keys() for e in files.values()):
        raise ArtifactError(f"{folder / MANIFEST}: not a manifest (files without bytes and sha256)")
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path}: missing (listed in {folder / MANIFEST})")
        if path.stat().st_size != entry["bytes"]:
            raise ArtifactError(f"{path}: {path.stat().st_size} bytes, {entry['bytes']} expected; remake it")
        if sha256_file(path) != entry["sha256"]:
            raise ArtifactError(f"{path}: its sha256 is not the manifest's; remake it")
    return files


def manifest_sha(folder: Path) -> str:
    """One sha256 for a whole verified-on-write folder: the hash of its manifest."""
    return sha256_file(Path(folder) / MANIFEST)
