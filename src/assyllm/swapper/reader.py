"""Reading tensors out of safetensors files into own memory: positional reads, no mmap of a file that may change.

A mapped file that is truncated kills the process (SIGBUS); a positional read comes back short, which is an error
that can be told. O_DIRECT keeps a second copy of the weights out of the page cache; where the file system refuses
it, reads are buffered.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from assyllm.artifacts import ArtifactError
from assyllm.zoo.header import Entry

PAGE = 4096  # alignment that O_DIRECT asks of offset, length and memory
CHUNK = 32 << 20  # bytes of one read: few wake-ups of the reading thread, short enough to pace a throttled storage


@dataclass(frozen=True, slots=True)
class Extent:
    """Neighbouring tensors that one read brings in, widened to whole pages."""

    file: Path
    start: int  # multiple of PAGE
    end: int  # bytes needed; the read goes on to the page's end
    entries: tuple[Entry, ...]

    @property
    def capacity(self) -> int:
        """Bytes of memory: equal for equal tensors, wherever in a page they begin."""
        length = self.entries[-1].end - self.entries[0].begin
        return (-(-length // PAGE) + 1) * PAGE


def peek(entry: Entry, limit: int = 1 << 16) -> Tensor:
    """A small tensor's values, a large one's shape and dtype only (on the meta device)."""
    if 0 < entry.bytes <= limit:
        return entry.read()
    return torch.empty(entry.shape, dtype=entry.dtype, device="meta")


def extents(entries: Iterable[Entry]) -> tuple[Extent, ...]:
    """The reads that bring in some tensors: neighbours together, gaps of a page or more left out."""
    found: list[Extent] = []
    ordered = sorted({e for e in entries if e.bytes}, key=lambda entry: (str(entry.file), entry.begin))
    for file, group in groupby(ordered, key=lambda entry: entry.file):
        run: list[Entry] = []
        for entry in group:
            if run and entry.begin - run[-1].end >= PAGE:
                found.append(_extent(file, run))
                run = []
            run.append(entry)
        found.append(_extent(file, run))
    return tuple(found)


def _extent(file: Path, run: list[Entry]) -> Extent:
    return Extent(file, run[0].begin // PAGE * PAGE, run[-1].end, tuple(run))


class Reader:
    """Open files and positional reads from them.

    Args:
        files: what will be read.
        sha256: expected hashes by file; each is checked once, through the descriptor that is then read from.
        direct: O_DIRECT or not; None takes it where the file system does.
        bytes_per_s: pace of the storage that is simulated; None for this machine's own.

    Raises:
        ArtifactError: a file is missing or is not the one that was hashed.
    """

    def __init__(
        self,
        files: Iterable[Path],
        sha256: Mapping[Path, str] | None = None,
        direct: bool | None = None,
        bytes_per_s: float | None = None,
    ) -> None:
        self.bytes_per_s = bytes_per_s
        self.bytes_read = 0
        self.direct = direct is not False
        self._free_at = 0.0  # when the simulated storage has served what was asked of it
        self._open: dict[Path, tuple[int, tuple[int, int, int]]] = {}
        try:
            for file in sorted(set(files)):
                descriptor = self._descriptor(file, required=direct is True)
                self._open[file] = (descriptor, _state(descriptor))
                if sha256 is not None:
                    self._verify(file, sha256[file])
        except BaseException:
            self.close()
            raise

    def _descriptor(self, file: Path, required: bool) -> int:
        try:
            if self.direct:
                descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
                try:
                    os.preadv(descriptor, [mmap.mmap(-1, PAGE)], 0)
                    return descriptor
                except OSError:
                    os.close(descriptor)
                    raise
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP) or required:
                raise ArtifactError(f"{file}: {error.strerror}") from None
            self.direct = False  # this file system has no O_DIRECT
        try:
            return os.open(file, os.O_RDONLY)
        except OSError as error:
            raise ArtifactError(f"{file}: {error.strerror}") from None

    def _verify(self, file: Path, expected: str) -> None:
        descriptor, (size, _, _) = self._open[file]
        digest, spare = hashlib.sha256(), memoryview(mmap.mmap(-1, CHUNK))
        for offset in range(0, size, CHUNK):
            got = os.preadv(descriptor, [spare], offset)
            digest.update(spare[:got])
        if digest.hexdigest() != expected:
            raise ArtifactError(f"{file}: its sha256 is not the manifest's; remake it")

    def read(self, extent: Extent, into: memoryview) -> None:
        """Read an extent into memory that begins on a page.

        Raises:
            ArtifactError: the file has been truncated or written to since it was opened. A file that another was
                renamed over is still the old one here.
        """
        descriptor, state = self._open[extent.file]
        wanted = extent.end - extent.start
        whole = -(-wanted // PAGE) * PAGE if self.direct else wanted
        done = 0
        while done < wanted:
            part = into[done : min(whole, done + CHUNK)]
            began = time.perf_counter()
            try:
                got = os.preadv(descriptor, [part], extent.start + done)
            except OSError as error:
                raise ArtifactError(f"{extent.file}: {error.strerror}") from None
            self._pace(began, got)
            if got <= 0:
                break
            done += got
            if done < wanted and got < len(part) and got % PAGE:
                break  # the file ends here
        self.bytes_read += done
        if done < wanted or _state(descriptor) != state:
            raise ArtifactError(f"{extent.file}: changed while in use; put it back and open the pool again")

    def _pace(self, began: float, size: int) -> None:
        """Sleep until the simulated storage would have served a read that began then."""
        if self.bytes_per_s is not None:
            self._free_at = max(began, self._free_at) + size / self.bytes_per_s
            time.sleep(max(0.0, self._free_at - time.perf_counter()))

    def close(self) -> None:
        """Close the files."""
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open = {}


def _state(descriptor: int) -> tuple[int, int, int]:
    stat = os.fstat(descriptor)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
