"""What a piece of torch code keeps in memory and computes, operation by operation: births and deaths of storages.

Under torch's ``FakeTensorMode`` the code runs with shapes and no storage, so that a step of a 7B model is
traced on a laptop in seconds; on a real device the same log is what really happened. One pass gives memory,
FLOPs and bytes. (torch's own ``FlopCounterMode`` keeps recomputed activations alive through its module hooks,
so it cannot share a pass with memory; here its *formulas* are applied to each operation instead.)
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

CATEGORIES = ("parameters", "gradients", "activations", "optimizer", "temporary")
# CUDA's caching allocator hands out multiples of 512 bytes. What is allocated first, and large, gets a segment of its
# own in units of 2 MiB, and a rest of up to 1 MiB stays with it
GRANULE, LARGE, SEGMENT, REST = 512, 10 * 2**20, 2 * 2**20, 2**20
_aten = torch.ops.aten
_category: ContextVar[str] = ContextVar("category", default="")
_running: ContextVar[Trace | None] = ContextVar("running", default=None)
_LINEAR_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: 1.0,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: 2.5,  # recomputes the scores: 5 products for 2
}


class Operation(NamedTuple):
    """A kind of kernel call: class (matmul, attention, elementwise), its FLOPs and the bytes it reads and writes."""

    kind: str
    flops: int
    bytes: int


@dataclass(slots=True)
class _Storage:
    """One allocation's life, in ticks (one an operation)."""

    size: int
    category: str  # of what was there before the step; "" for what the step allocated
    born: int
    in_backward: bool
    recorded: bool  # allocated while autograd was recording
    died: int = 2**62


@dataclass
class Report:
    """Result of a trace: bytes by category at the peak, and the kernel calls with their numbers."""

    peak: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))
    operations: Counter[Operation] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.peak.values())

    @property
    def flops(self) -> int:
        """Multiplications and additions of all matrix products and attention."""
        return sum(op.flops * count for op, count in self.operations.items())

    @property
    def bytes(self) -> int:
        """Bytes read and written by all kernels, none of them fused."""
        return sum(op.bytes * count for op, count in self.operations.items())


@contextmanager
def allocating(category: str) -> Iterator[None]:
    """What is allocated inside, during a traced step, is of this category (weights that are brought in, say)."""
    token = _category.set(category)
    try:
        yield
    finally:
        _category.reset(token)


class _Temporary(NamedTuple):
    """What a piece of code that leaves one tensor did: its kernel calls, the most that it held, what it leaves."""

    operations: Counter[Operation]
    most: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


_temporaries: dict[tuple[Hashable, int], _Temporary] = {}


def repeated(key: Hashable, run: Callable[[], Tensor]) -> Tensor:
    """``run()``, whose bytes and operations follow from ``key``: traced on fake tensors once, then logged as it was.

    ``run`` leaves one tensor and nothing else, and what it holds on the way is temporary. On a real device it runs.
    """
    trace = _running.get()
    return run() if trace is None or detect_fake_mode() is None else trace.again((key, trace.granule), run)


class Trace(TorchDispatchMode):
    """Log every operation inside the ``with``; :meth:`report` says what stood at the peak.

    Categories of what the step allocates: **activations** are what the forward pass (or a recomputation of it)
    leaves for a backward pass; **gradients** what a backward pass leaves behind; the rest is **temporary**.
    Parameters, optimizer state and inputs are named by :meth:`hold` before the step.

    Args:
        granule: bytes that an allocation is rounded up to; :data:`GRANULE` also stands for the allocator's segments.
    """

    def __init__(self, granule: int = GRANULE) -> None:
        super().__init__()
        self.granule = granule
        self._known: dict[int, _Storage] = {}
        self._log: list[_Storage] = []
        self._watched: dict[int, Any] = {}
        self._tick = self._live = self._most = self._most_at = 0
        self._backward: list[list[int]] = []  # [first, last] ticks of every backward pass
        self._was_backward = self._silent = False
        self._high = 0  # greatest total since it was last set
        self.operations: Counter[Operation] = Counter()

    def hold(self, category: str, tensors: Iterable[Tensor]) -> None:
        """Count tensors that exist before the step; a storage named twice counts once."""
        for tensor in tensors:
            self._see(tensor, category, False, first=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not results:  # a question about a tensor, not an operation
            return out
        inside = self._advance()
        if not func.is_view and not self._silent:
            self._count(func, args, kwargs, out, results)
        for tensor in results:
            self._see(tensor, _category.get(), inside)
        return out

    def again(self, key: tuple[Hashable, int], run: Callable[[], Tensor]) -> Tensor:
        """See :func:`repeated`."""
        if key not in _temporaries:
            counted, high, before = self.operations, self._high, self._live
            self.operations, self._high = Counter(), before
            out = run()
            known = _Temporary(self.operations, self._high - before, tuple(out.shape), out.stride(), out.dtype)
            counted.update(known.operations)
            self.operations, self._high = counted, max(high, self._high)
            _temporaries[key] = known
            return out
        known = _temporaries[key]
        self.operations.update(known.operations)
        self._advance()
        self._log.append(_Storage(known.most, "temporary", self._tick, False, False, died=self._tick + 1))
        self._rise(self._live + known.most)
        self._silent = True
        try:
            return torch.empty_strided(known.shape, known.strides, dtype=known.dtype)
        finally:
            self._silent = False

    def _advance(self) -> bool:
        """The next tick; whether it is in a backward pass."""
        self._tick += 1
        inside = torch._C._current_graph_task_id() != -1
        if inside and not self._was_backward:
            self._backward.append([self._tick, self._tick])
        if inside:
            self._backward[-1][1] = self._tick
        self._was_backward = inside
        return inside

    def _rise(self, total: int) -> None:
        self._high = max(self._high, total)
        if total > self._most:
            self._most, self._most_at = total, self._tick

    def __enter__(self) -> Trace:
        self._token = _running.set(self)
        self._resize = torch.UntypedStorage.resize_
        trace, original = self, self._resize

        def resize_(storage: Any, size: int) -> Any:  # no operation of torch's, so it is not dispatched
            known = trace._known.get(storage._cdata)
            out = original(storage, size)
            if known is not None:
                trace._free(storage._cdata)
                trace._add(storage, known.category, known.in_backward, known.recorded)
            return out

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        _running.reset(self._token)
        return super().__exit__(*error)

    def _see(self, tensor: Tensor, category: str, inside: bool, first: bool = False) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or tensor.device.type == "meta":
            return
        self._add(storage, category, inside, torch.is_grad_enabled(), first)

    def _add(self, storage: Any, category: str, inside: bool, recorded: bool, first: bool = False) -> None:
        key = storage._cdata
        size = -(-storage.nbytes() // self.granule) * self.granule
        if first and size >= LARGE and self.granule == GRANULE and -size % SEGMENT <= REST:
            size += -size % SEGMENT
        entry = _Storage(size, category, self._tick, inside, recorded)
        self._known[key] = entry
        self._log.append(entry)
        self._watched[key] = weakref.ref(storage, lambda _: self._free(key))
        self._live += size
        self._rise(self._live)

    def _free(self, key: int) -> None:
        entry = self._known.pop(key, None)
        self._watched.pop(key, None)
        if entry is not None:
            entry.died = self._tick + 1
            self._live -= entry.size

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, results: list[Tensor]) -> None:
        packet = func._overloadpacket
        moved = sum(t.numel() * t.element_size() for t in (*tree_leaves((args, kwargs)), *results)
                    if isinstance(t, Tensor))  # fmt: skip
        kind, flops = "elementwise", 0
        if packet in _LINEAR_ATTENTION:
            backward = _LINEAR_ATTENTION[packet] > 1
            q, k, v = args[1:4] if backward else args[:3]
            kind = "attention"
            flops = int(sdpa_flop_count(q.shape, k.shape, v.shape) * _LINEAR_ATTENTION[packet])
        elif packet in flop_registry:
            kind = "attention" if "attention" in packet.__name__ else "matmul"
            flops = int(flop_registry[packet](*args, **kwargs, out_val=out))
        if moved:
            self.operations[Operation(kind, flops, moved)] += 1

    def report(self) -> Report:
        """Bytes by category at the moment of the highest total."""
        found = Report(operations=self.operations)
        for entry in self._log:
            if entry.born <= self._most_at < entry.died:
                found.peak[self._category(entry)] += entry.size
        return found

    def _category(self, entry: _Storage) -> str:
        if entry.category:
            return entry.category
        if entry.in_backward:
            ended = next(last for first, last in self._backward if first <= entry.born <= last)
            if entry.recorded:  # a recomputed forward pass
                return "activations"
            return "gradients" if entry.died > ended + 1 else "temporary"
        began = next((first for first, _ in self._backward if first > entry.born), None)
        kept = began is not None and entry.died > began
        return "activations" if kept else "temporary"
