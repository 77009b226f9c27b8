"""Memory that units are read into: host buffers with zero-copy views, or GPU buffers filled by a copy stream."""

from __future__ import annotations

import gc
import math
import mmap
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from assyllm.artifacts import ArtifactError
from assyllm.swapper.reader import PAGE, Extent, Reader, extents
from assyllm.zoo.header import Entry

ALIGN = 256  # bytes between tensors on a GPU
HUGE = 2 << 20
HOSTS = ("disk", "ram")  # where a GPU's units come from


@dataclass(frozen=True)
class Unit:
    """What is swapped as one: a layer's tensors (or an embedding's, or a head's).

    Args:
        tensors: the name that the module knows -> where it lies.
        casts: names -> the dtype in which the module computes, where that is not the stored one. A cast tensor is a
            copy; its bytes count.
    """

    id: str
    tensors: Mapping[str, Entry]
    casts: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The reads that bring it in."""
        return extents(self.tensors.values())

    @property
    def cast_bytes(self) -> int:
        """Bytes of the cast copies."""
        return sum(self.tensors[n].bytes // self.tensors[n].dtype.itemsize * t.itemsize for n, t in self.casts.items())


@dataclass
class Loaded:
    """A unit in memory; ``buffer`` is the place's own."""

    unit: Unit
    tensors: dict[str, Tensor]
    buffer: Any


def check_bytes(name: str, value: object) -> None:
    """Whether an argument is a number of bytes above 0.

    Raises:
        ArtifactError: in one line that names it.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise ArtifactError(f"{name}: {value!r} is no number of bytes")
    if value <= 0:
        raise ArtifactError(f"{name}: {value!r} is not above 0")


def place_of(budget_bytes: object, device: str, host: str, bytes_per_s: object = None) -> torch.device:
    """The device that blocks compute on, once all that a caller says of memory is known to be possible.

    Raises:
        ArtifactError: in one line that names the argument.
    """
    check_bytes("budget_bytes", budget_bytes)
    if bytes_per_s is not None:
        check_bytes("bytes_per_s", bytes_per_s)
    if host not in HOSTS:
        raise ArtifactError(f"host: {host!r} is none of {', '.join(HOSTS)}")
    try:
        on = torch.device(device)
    except (RuntimeError, TypeError):
        raise ArtifactError(f"device: {device!r} is none that torch knows") from None
    if on.type not in ("cpu", "cuda"):
        raise ArtifactError(f"device: {device!r} is neither cpu nor cuda")
    if on.type == "cuda" and not torch.cuda.is_available():
        raise ArtifactError(f"device: no CUDA device for {device!r} here")
    return on


class Place(Protocol):
    """Where units live. ``load`` runs on the loader's thread, ``ready`` and ``retire`` on the computing one."""

    def size(self, unit: Unit) -> int:
        """Bytes that the unit takes."""

    def load(self, unit: Unit, reader: Reader, spare: list[Any]) -> Loaded:
        """Bring a unit in, into one of the spare buffers where one fits; the other spares are let go."""

    def ready(self, loaded: Loaded) -> None:
        """Called before the unit computes."""

    def retire(self, loaded: Loaded) -> None:
        """Called when the unit has computed for now."""

    def release(self, loaded: Loaded) -> Any:
        """Give up a unit; returns its buffer for :meth:`load`."""


def _alone() -> int:
    """What ``sys.getrefcount`` says of a local variable that nothing else refers to: 2, from Python 3.14 on 1."""
    view = memoryview(b"")
    return sys.getrefcount(view)


ALONE = _alone()


class HostMemory:
    """Anonymous page-aligned buffers; tensors are views into them (nothing is copied)."""

    def size(self, unit: Unit) -> int:
        return sum(extent.capacity for extent in unit.extents) + unit.cast_bytes

    def load(self, unit: Unit, reader: Reader, spare: list[Any]) -> Loaded:
        capacity = sum(extent.capacity for extent in unit.extents)
        buffer = next((old for old in spare if len(old) == capacity), None)
        spare.clear()
        if buffer is None:
            buffer = _anonymous(capacity)
        view = memoryview(buffer)
        places = _read(unit, reader, view)
        tensors = {}
        for name, entry in unit.tensors.items():
            tensors[name] = _view(view, entry, places.get(entry, 0))
            if name in unit.casts:
                tensors[name] = tensors[name].to(unit.casts[name])
        return Loaded(unit, tensors, (buffer, view))

    def ready(self, loaded: Loaded) -> None:
        pass

    def retire(self, loaded: Loaded) -> None:
        pass

    def release(self, loaded: Loaded) -> Any:
        """The buffer, once nobody holds a view into it.

        Raises:
            ArtifactError: a tensor of the unit is still held; overwriting it would change it silently.
        """
        loaded.tensors.clear()
        buffer, view = loaded.buffer
        loaded.buffer = None
        for attempt in range(2):
            if sys.getrefcount(view) <= ALONE:  # every storage made from the view holds a reference to it
                view.release()
                return buffer
            if not attempt:
                gc.collect()
        raise ArtifactError(
            f"{loaded.unit.id}: a tensor of it is still held; clone what you keep, and run under torch.no_grad()"
        )


def _read(unit: Unit, reader: Reader, view: memoryview) -> dict[Entry, int]:
    """Read a unit's extents one after the other into page-aligned memory; returns where each tensor begins."""
    places, start = {}, 0
    for extent in unit.extents:
        reader.read(extent, view[start : start + extent.capacity])
        for entry in extent.entries:
            places[entry] = start + entry.begin - extent.start
        start += extent.capacity
    return places


def _anonymous(size: int) -> mmap.mmap:
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def _view(memory: memoryview, entry: Entry, offset: int) -> Tensor:
    if not entry.bytes:
        return torch.empty(entry.shape, dtype=entry.dtype)
    number = entry.bytes // entry.dtype.itemsize
    return torch.frombuffer(memory, dtype=entry.dtype, count=number, offset=offset).view(entry.shape)


class CudaMemory:
    """Buffers on a GPU, filled on a stream of their own through pinned host memory.

    Args:
        units: all that will be loaded; the largest one sizes the staging buffers.
        host: ``disk`` reads a unit each time through two pinned staging buffers; ``ram`` reads everything once into
            pinned host memory and copies from there.
    """

    def __init__(self, device: torch.device, units: Sequence[Unit], reader: Reader, host: str = "disk") -> None:
        if any(unit.casts for unit in units):
            raise ArtifactError(f"{device}: weights compute in the dtype that they are stored in")
        self.device, self.stream = device, torch.cuda.Stream(device)
        self._host = HostMemory()
        self._pinned: dict[str, dict[str, Tensor]] = {}
        self._staging: list[tuple[Tensor, Any]] = []
        self._turn = 0
        if host == "ram":
            for unit in units:
                loaded = self._host.load(unit, reader, [])
                self._pinned[unit.id] = {name: tensor.pin_memory() for name, tensor in loaded.tensors.items()}
                self._host.release(loaded)
        else:
            largest = max(sum(extent.capacity for extent in unit.extents) for unit in units)
            for _ in range(2):
                self._staging.append((torch.empty(largest + PAGE, dtype=torch.uint8).pin_memory(), None))

    def size(self, unit: Unit) -> int:
        return sum(-(-entry.bytes // ALIGN) * ALIGN for entry in unit.tensors.values())

    def load(self, unit: Unit, reader: Reader, spare: list[Any]) -> Loaded:
        source = self._pinned.get(unit.id)
        turn = self._turn
        if source is None:
            staging, copied = self._staging[turn]
            if copied is not None:
                copied.synchronize()  # the copy before the last has left this buffer
            source = _staged(unit, reader, staging)
        with torch.cuda.stream(self.stream):
            size = self.size(unit)
            buffer = next((old for old in spare if old.numel() == size), None)
            spare.clear()
            if buffer is None:
                buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
            tensors, start = {}, 0
            for name, entry in unit.tensors.items():
                part = buffer[start : start + entry.bytes].view(entry.dtype).view(entry.shape)
                part.copy_(source[name], non_blocking=True)
                tensors[name] = part
                start += -(-entry.bytes // ALIGN) * ALIGN
            arrived = torch.cuda.Event()
            arrived.record(self.stream)
        if self._staging:
            self._staging[turn] = (self._staging[turn][0], arrived)
            self._turn = 1 - turn
        return Loaded(unit, tensors, [buffer, arrived, None])

    def ready(self, loaded: Loaded) -> None:
        torch.cuda.current_stream(self.device).wait_event(loaded.buffer[1])

    def retire(self, loaded: Loaded) -> None:
        loaded.buffer[2] = torch.cuda.Event()
        loaded.buffer[2].record(torch.cuda.current_stream(self.device))

    def release(self, loaded: Loaded) -> Any:
        loaded.tensors.clear()
        buffer, _, done = loaded.buffer
        loaded.buffer = None
        if done is not None:
            self.stream.wait_event(done)  # nothing is written over it before what computed from it has finished
        return buffer


def _staged(unit: Unit, reader: Reader, staging: Tensor) -> dict[str, Tensor]:
    """A unit's tensors in a pinned staging buffer, read from disk."""
    offset = -staging.data_ptr() % PAGE
    places = _read(unit, reader, memoryview(staging.numpy().data)[offset:])
    tensors = {}
    for name, entry in unit.tensors.items():
        begin = offset + places.get(entry, 0)
        tensors[name] = staging[begin : begin + entry.bytes].view(entry.dtype).view(entry.shape)
    return tensors
