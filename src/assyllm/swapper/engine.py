"""One engine for every way of swapping: what the plan decides is carried out on time, ahead of time, or on demand.

The three pipelines of the paper's figure 12 are three settings:

=========  =========  ==============================================================================
preload    preswap    what happens
=========  =========  ==============================================================================
False      False      a unit is read when it is asked for, the computation waits
True       False      the next unit is read while this one computes, as long as there is room for it
True       True       room is made in advance too, so that reading never has to stop
=========  =========  ==============================================================================
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from torch import Tensor

from assyllm.artifacts import ArtifactError
from assyllm.swapper.memory import Loaded, Place, Unit, check_bytes
from assyllm.swapper.plan import Cache, Step, block_of
from assyllm.swapper.reader import Reader


@dataclass(frozen=True, slots=True)
class Event:
    """Something that took time or memory; seconds count from the engine's start (on a GPU: when it was enqueued)."""

    kind: Literal["load", "wait", "compute", "evict"]
    unit: str
    start: float
    end: float
    bytes: int  # read or given back; 0 for wait and compute
    resident: int  # bytes in memory after it

    @property
    def block(self) -> str:
        """The block that the unit belongs to."""
        return block_of(self.unit)


class Engine:
    """Units in memory within a budget, in the order of a plan.

    Args:
        units: everything that can be asked for.
        plan: the order in which :meth:`use` will ask; a departure from it is served and planned around.
        repeat: the plan begins anew when it ends (a model called again and again).
        record: keep every :class:`Event`.
        unbind: called with a unit before it leaves memory, so that nobody goes on using its tensors.
        cache: options of :class:`assyllm.swapper.plan.Cache` (policy, window, correlation, seed).

    Raises:
        ArtifactError: the budget is too small (with the bytes needed), the plan names an unknown unit.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        place: Place,
        reader: Reader,
        budget_bytes: int,
        plan: Sequence[str] = (),
        *,
        preload: bool = True,
        preswap: bool = True,
        repeat: bool = False,
        record: bool = True,
        unbind: Callable[[str], None] | None = None,
        **cache: Any,
    ) -> None:
        self.units = {unit.id: unit for unit in units}
        self.sizes: Mapping[str, int] = {unit.id: place.size(unit) for unit in units}
        self.preload, self.preswap, self.record = preload, preswap, record
        self.events: list[Event] = []
        self.loads = 0
        self.resident_bytes = self.peak_bytes = 0
        self._place, self._reader = place, reader
        self._cache = Cache(self.sizes, budget_bytes, overlap=preload and preswap, **cache)
        plan = [unit for unit, _ in groupby(plan)]  # asking again for the unit in use is no access
        self._cache.extend(plan)
        self._again = plan if repeat else []
        self._loaded: dict[str, Loaded] = {}
        self._unbind = unbind
        self._at = self._done = -1  # position of the access asked for last, and of the last one that has computed
        self._current: str | None = None  # the unit that computes
        self._step: Step | None = None  # decided, not carried out yet
        self._busy = self._held = self._closed = False
        self._error: BaseException | None = None
        self.started = self._since = time.perf_counter()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="swapper", daemon=True) if preload else None
        if self._thread is not None:
            self._thread.start()

    # ------------------------------------------------------------------------------------ the computing side

    def use(self, unit: str) -> dict[str, Tensor]:
        """The unit's tensors, valid until another unit is asked for.

        Raises:
            ArtifactError: it cannot be read (file changed), or there is no such unit.
        """
        if unit == self._current and self._error is None:
            return self._loaded[unit].tensors
        with self._changed:
            self._finish()
            self._fail()
            if unit not in self.units:
                raise ArtifactError(f"{unit}: no such unit in the pool")
            if self._again and len(self._cache.plan) - self._at <= 2 * len(self._again):
                self._cache.extend(self._again)
            if self._at + 1 >= len(self._cache.plan) or self._cache.plan[self._at + 1] != unit:
                self._depart(unit)
            self._at += 1
            began = time.perf_counter()
            self._changed.notify_all()
            while self._carried_out() <= self._at:
                if self._thread is None:
                    self._on_demand()
                else:
                    self._changed.wait()
                self._fail()
            loaded = self._loaded[unit]
            self._place.ready(loaded)
            self._since = time.perf_counter()
            if self._since - began > 1e-5:
                self._log("wait", unit, began, self._since)
            self._current = unit
            return loaded.tensors

    def finish(self) -> None:
        """The unit in use has computed; asking for the next one says so too."""
        with self._changed:
            self._finish()
            self._changed.notify_all()

    def _finish(self) -> None:
        if self._current is not None:
            unit, self._current = self._current, None
            self._place.retire(self._loaded[unit])
            self._log("compute", unit, self._since, time.perf_counter())
            self._done = self._at

    def extend(self, plan: Iterable[str]) -> None:
        """Tell what will be asked for after what is planned."""
        with self._changed:
            self._cache.extend(unit for unit, _ in groupby(plan))
            self._changed.notify_all()

    def set_budget(self, budget_bytes: int) -> None:
        """Another budget from now on: when this returns, no more than that is in memory.

        Raises:
            ArtifactError: too small for two units, or no number; everything stays as it was.
        """
        check_bytes("budget_bytes", budget_bytes)
        with self._changed, self._idle():
            self._fail()
            self._cache.resize(budget_bytes)
            waiting = self._current is None and self._at > self._done  # asked for and not there yet
            position = self._at if waiting else self._at + 1
            self._replan(position, self._cache.plan[position:])
            for unit in self._cache.shrink({self._current} if self._current else set()):
                self._evict(unit)

    def _depart(self, unit: str) -> None:
        """Serve another unit than planned: skip forward to it if it is planned for later, else put it in."""
        with self._idle():
            rest = self._cache.plan[self._at + 1 :]
            self._replan(self._at + 1, rest[rest.index(unit) :] if unit in rest else [unit, *rest])

    def _replan(self, position: int, rest: Sequence[str]) -> None:
        self._step = None
        self._cache.reset(position, self._loaded, rest)

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """The loading side at rest, between two decisions."""
        self._held = True
        while self._busy:
            self._changed.wait()
        try:
            yield
        finally:
            self._held = False
            self._changed.notify_all()

    def _carried_out(self) -> int:
        """How many accesses of the plan have their unit in memory (or had it)."""
        return self._cache.position if self._step is None else self._step.position

    # --------------------------------------------------------------------------------------- the loading side

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                try:
                    if self._held or not self._advance():
                        self._changed.wait()
                except BaseException as error:  # told to the computing thread, which asks next
                    self._error, self._busy = error, False
                    self._changed.notify_all()
                    return

    def _on_demand(self) -> None:
        try:
            self._advance()
        except BaseException as error:
            self._error = error
            raise

    def _advance(self) -> bool:
        """Carry out the next decision if its time has come."""
        if self._step is None:
            if self._cache.position >= len(self._cache.plan):
                return False
            self._step = self._cache.access()
        step = self._step
        if not self._due(step):
            return False
        spare = [self._evict(unit) for unit, _ in step.evicted]
        if not step.hit:
            self._load(step, spare)
        self._step = None
        self._changed.notify_all()
        return True

    def _due(self, step: Step) -> bool:
        """Whether nothing that must leave is still needed, and the settings let it leave this early."""
        if step.evicted and not self.preswap and self._at < step.position:
            return False
        return all(last <= self._done for _, last in step.evicted)

    def _load(self, step: Step, spare: list[Any]) -> None:
        self.resident_bytes += step.bytes
        if self.resident_bytes > self._cache.budget:
            raise AssertionError(f"{self.resident_bytes} bytes in memory, budget {self._cache.budget}")
        self.peak_bytes = max(self.peak_bytes, self.resident_bytes)
        self._busy = True
        self._changed.release()
        began = time.perf_counter()
        try:
            loaded = self._place.load(self.units[step.unit], self._reader, spare)
        finally:
            ended = time.perf_counter()
            self._changed.acquire()
            self._busy = False
        self._loaded[step.unit] = loaded
        self.loads += 1
        self._log("load", step.unit, began, ended, step.bytes)

    def _evict(self, unit: str) -> Any:
        began = time.perf_counter()
        if self._unbind is not None:
            self._unbind(unit)
        buffer = self._place.release(self._loaded.pop(unit))
        self.resident_bytes -= self.sizes[unit]
        self._log("evict", unit, began, time.perf_counter(), self.sizes[unit])
        return buffer

    # ------------------------------------------------------------------------------------------------ common

    def _fail(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise ArtifactError("closed: its blocks compute inside its `with` only")

    def _log(self, kind: Any, unit: str, start: float, end: float, size: int = 0) -> None:
        if self.record:
            self.events.append(Event(kind, unit, start - self.started, end - self.started, size, self.resident_bytes))

    def close(self) -> None:
        """Stop loading and let go of everything."""
        with self._changed:
            self._finish()
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        for unit, loaded in self._loaded.items():
            if self._unbind is not None:
                self._unbind(unit)
            loaded.tensors.clear()
        self._loaded.clear()
        self.resident_bytes = 0
        self._reader.close()
