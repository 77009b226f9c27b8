"""One measured point of the cost model: a method's step at one shape and reading, and what follows from it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from assyllm.baselines.fedadapter import MAX_DEPTH
from assyllm.cost.devices import SECONDS, Device, compute_seconds, devices, step_seconds
from assyllm.cost.methods import JOINED, STREAMED, TUNING, step_of
from assyllm.cost.selection import Residency
from assyllm.cost.step import Reading, fakes, measure
from assyllm.cost.trace import CATEGORIES, Operation
from assyllm.cost.tuning import LAYERS_A_JOIN
from assyllm.params import CONTROLS, NO_DEVICE

GB = 1e9
SHALLOW = 3  # layers of the smaller of the two models that a deep one is extrapolated from


@dataclass(frozen=True)
class Point:
    """Bytes by category at the peak (the matmul workspace apart), kernel calls, bytes to and from storage in a step."""

    peak: dict[str, float]
    workspace: float
    operations: Counter[Operation]
    stored: float = 0.0
    overlapped: bool = False
    traffic: tuple[float, float] = (0.0, 0.0)

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return sum(self.peak.values()) + self.workspace

    @property
    def flops(self) -> float:
        """Of one step."""
        return float(sum(op.flops * count for op, count in self.operations.items()))

    def seconds(self, on: Device) -> float:
        """Time of one step on a device."""
        return step_seconds(compute_seconds(self.operations, on), self.stored, on, self.overlapped)

    def row(self) -> dict[str, Any]:
        """The point as columns of a table: GB = 10^9 bytes, TFLOP of a step."""
        return {
            "peak_gb": self.total / GB,
            **{f"{name}_gb": self.peak[name] / GB for name in CATEGORIES},
            "workspace_gb": self.workspace / GB,
            "tflop": self.flops / 1e12,
            "stored_gb": self.stored / GB,
            "up_gb": self.traffic[0] / GB,
            "down_gb": self.traffic[1] / GB,
        }

    def times(self) -> dict[str, str]:
        """Seconds of a step on every known device, all digits, as columns (see :func:`devices.on_device`)."""
        return {f"{SECONDS}{on.name}": repr(self.seconds(on)) for on in devices().values()}


_traced: dict[tuple[str, str, Reading, Residency | None], Point] = {}  # a process traces equal steps once
NOTHING = Point(dict.fromkeys(CATEGORIES, 0.0), 0.0, Counter())


def device_point(method: str, config: dict[str, Any], reading: Reading, residency: Residency) -> Point:
    """What a method asks of a device: a step of it, and the memory of the step that needs most.

    The step of the methods that assemble blocks is scoring without adapters, whose work walks count by themselves
    (:mod:`walked`). Memory is that of scoring with adapters for ``assyllm``; ``assyllm_paper`` also trains them
    (:mod:`tuning`), one layer in memory at a time, counted at 16 bit whatever the pool's: an upper bound.
    """
    point = measure_point(method, config, reading, residency, deep=False)
    method, _ = CONTROLS.get(method, (method, None))
    if method == "assyllm":
        most = measure_point(JOINED, config, reading, residency, deep=False)
    elif method == "assyllm_paper":
        most = measure_point(TUNING, config, reading, replace(residency, bits=16), deep=False)
    else:
        return point
    return replace(point, peak=most.peak, workspace=most.workspace) if most.total > point.total else point


def measure_point(
    method: str, config: dict[str, Any], reading: Reading, residency: Residency | None = None, deep: bool = True
) -> Point:
    """Measure a method's step without any memory.

    Args:
        deep: build the model at its full depth. Otherwise the point is extrapolated from two shallow models: layers are
            alike, so bytes and operations grow linearly with them from a few layers on (a test compares). Of swapping
            a state of every layer stays in memory, and a peak elsewhere is overtaken at some depth: there is a line
            only where the shallow peaks grow with depth.
    """
    if method in NO_DEVICE:
        return NOTHING
    layers = int(config["num_hidden_layers"])
    shallow, grown = SHALLOW, 1
    if method == "fedadapter":  # one layer of four runs forward only
        shallow = grown = round(1 / (1 - MAX_DEPTH))
    elif method == TUNING:
        shallow, grown = 2 * LAYERS_A_JOIN, LAYERS_A_JOIN
    elif method in (*STREAMED, JOINED):  # every part that is in memory, and one more
        grown = (residency or Residency()).layers
        shallow = grown * ((residency or Residency()).resident + 1)
    if deep or shallow + grown >= layers or (layers - shallow) % grown:
        return _at(method, config, reading, residency)

    def at(more: int) -> Point:
        return _at(method, config | {"num_hidden_layers": shallow + more * grown}, reading, residency)

    low, high = at(0), at(1)
    deep_one = _extrapolate(low, high, (layers - shallow) / grown)
    apart = min(deep_one.peak.values()) < 0  # the two peaked in different places, so there is no line through them
    if method == "swapping":
        apart |= not 0 < high.total - low.total == at(2).total - high.total
    if apart:
        return _at(method, config, reading, residency)
    return deep_one


def _at(method: str, config: dict[str, Any], reading: Reading, residency: Residency | None) -> Point:
    key = (method, json.dumps(config, sort_keys=True), reading, residency)
    if key not in _traced:
        _traced[key] = _trace(method, config, reading, residency)
    return _traced[key]


def _trace(method: str, config: dict[str, Any], reading: Reading, residency: Residency | None) -> Point:
    with fakes():
        step = step_of(method, config, reading, residency)
        report = measure(step)
        storage = step.storage
        return Point(
            peak={name: float(size) for name, size in report.peak.items()},
            workspace=float(step.workspace),
            operations=Counter(report.operations),
            stored=float(storage.read_bytes + storage.written_bytes) if storage else 0.0,
            overlapped=step.overlapped,
            traffic=(float(step.traffic[0]), float(step.traffic[1])),
        )


def _extrapolate(low: Point, high: Point, factor: float) -> Point:
    def line(a: float, b: float) -> float:
        return a + (b - a) * factor

    names = [*low.operations, *(op for op in high.operations if op not in low.operations)]
    counts = {op: round(line(low.operations[op], high.operations[op])) for op in names}
    return replace(
        high,
        peak={name: line(low.peak[name], high.peak[name]) for name in CATEGORIES},
        operations=Counter({op: count for op, count in counts.items() if count > 0}),
        stored=line(low.stored, high.stored),
        traffic=(line(low.traffic[0], high.traffic[0]), line(low.traffic[1], high.traffic[1])),
    )
