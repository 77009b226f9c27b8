"""Whether a disk holds what is to be written, asked before anything is."""

from __future__ import annotations

import shutil
from pathlib import Path

from assyllm.artifacts import ArtifactError

SPARE = 0.5e9  # bytes that a disk keeps


def free(folder: Path) -> int:
    """Bytes free on the disk that ``folder`` is, or will be, on."""
    return shutil.disk_usage(existing(folder)).free


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = Path(folder).absolute()
    return next(p for p in (folder, *folder.parents) if p.is_dir())


def disk_of(folder: Path) -> int:
    """What tells the disk of ``folder`` from another."""
    return existing(folder).stat().st_dev


def gb(size: float) -> str:
    """A size in GB (10^9 bytes), or MB below one."""
    return f"{size / 1e9:.1f} GB" if size >= 0.95e9 else f"{size / 1e6:.1f} MB"


def require(size: float, folder: Path, what: str) -> None:
    """Refuse early.

    Raises:
        ArtifactError: ``size`` bytes and a reserve do not fit on the disk of ``folder``.
    """
    there = free(folder)
    if size and size + SPARE > there:
        raise ArtifactError(f"{what} needs {gb(size)} in {folder}, {gb(there)} are free (and {gb(SPARE)} stay spare)")
