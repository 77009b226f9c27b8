"""What a safetensors file holds and where: its header, checked against its size. No torch before a tensor is asked for.

The format is a length, a JSON header and the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from assyllm.artifacts import ArtifactError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# the format's names, torch's, and bytes; in the order in which safetensors lays tensors out, widest first
KINDS = {
    "U64": ("uint64", 8), "I64": ("int64", 8), "F64": ("float64", 8), "F32": ("float32", 4), "U32": ("uint32", 4),
    "I32": ("int32", 4), "BF16": ("bfloat16", 2), "F16": ("float16", 2), "U16": ("uint16", 2), "I16": ("int16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1), "I8": ("int8", 1), "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in a file: its bytes are ``begin`` .. ``end - 1``."""

    file: Path
    name: str
    kind: str  # one of KINDS
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.begin

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        import torch

        found: torch.dtype = getattr(torch, KINDS[self.kind][0])
        return found

    def read(self) -> Tensor:
        """The tensor, in memory of its own (pages of a mapped file would add up).

        Raises:
            ArtifactError: the file has become shorter.
        """
        import torch

        buffer = bytearray(self.bytes)
        with open(self.file, "rb", buffering=0) as handle:
            handle.seek(self.begin)
            view, done = memoryview(buffer), 0
            while done < self.bytes and (count := handle.readinto(view[done:])):
                done += count
        if done != self.bytes:
            raise ArtifactError(f"{self.file}: cut short at {self.begin + done} bytes")
        found = torch.frombuffer(buffer, dtype=self.dtype) if self.bytes else torch.empty(0, dtype=self.dtype)
        return found.view(self.shape)


def header(file: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name, in the file's order.

    Raises:
        ArtifactError: no such file, not in this format, shorter or longer than it says, or of an unknown dtype.
    """
    file = Path(file)
    try:
        with open(file, "rb") as handle:
            size = file.stat().st_size
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > size - 8:
                raise ArtifactError(f"{file}: not a safetensors file, or cut short ({size} bytes)")
            listed = json.loads(handle.read(length))
    except OSError as error:
        raise ArtifactError(f"{file}: {error.strerror}") from None
    except ValueError:
        raise ArtifactError(f"{file}: its safetensors header is damaged") from None
    try:
        entries = [_entry(file, 8 + length, name, raw) for name, raw in listed.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise ArtifactError(f"{file}: its safetensors header is damaged") from None
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    end = 8 + length
    for entry in entries:
        if entry.begin != end:
            raise ArtifactError(f"{file}: its safetensors header is damaged ({entry.name} begins at the wrong byte)")
        end = entry.end
    if size != end:
        raise ArtifactError(f"{file}: {size} bytes, {end} expected; fetch or make it again")
    return {entry.name: entry for entry in entries}


def _entry(file: Path, base: int, name: str, raw: dict) -> Entry:
    if raw["dtype"] not in KINDS:
        raise ArtifactError(f"{file}: {name} is of dtype {raw['dtype']}, which is not read here")
    begin, end = raw["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (begin, end, *raw["shape"])):
        raise ValueError("offsets and sizes are whole numbers")
    entry = Entry(file, name, raw["dtype"], tuple(raw["shape"]), base + begin, base + end)
    if entry.bytes != math.prod(entry.shape) * KINDS[entry.kind][1]:
        raise ArtifactError(f"{file}: {name} has {entry.bytes} bytes, which is not its shape; the file is altered")
    return entry
