"""Devices as data (``devices.csv``, every number with its source) and a step's time and energy on them. No torch.

time = sum over kernel calls of max(FLOPs / effective rate, bytes / effective bandwidth), then the bytes to and from
storage over its bandwidth, hidden behind the computing where the method overlaps them. The effective rates are the
data sheet's times one efficiency per class of kernel, fitted on one H200 (``benchmarks/cost_against_gpu.csv``) and
taken over for the other devices, where nothing was measured. Energy is time times the stated power of a busy device.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from assyllm.artifacts import ArtifactError
from assyllm.results import text

# shares of the data sheet's FLOP/s (products, attention) and bytes/s (all kernels) that a kernel reaches on one H200;
# attention is too small a part of a step to be fitted by itself and has the products' value
EFFICIENCY = {"matmul": 0.66, "attention": 0.66, "bandwidth": 0.75}
SECONDS = "seconds_"  # before a device's name: a column of the stage `cost`


@dataclass(frozen=True, slots=True)
class Device:
    """What a device's maker states. FLOP/s in 16 bit, bytes/s, bytes/s of storage, watts."""

    name: str
    label: str
    flops: float
    bandwidth: float
    memory_gb: float
    storage: float
    watts: float


@cache
def devices() -> dict[str, Device]:
    """All devices by name."""
    table = files("assyllm").joinpath("cost/devices.csv").read_text(encoding="utf-8")
    numbers = ("flops", "bandwidth", "memory_gb", "storage", "watts")
    return {
        row["device"]: Device(row["device"], row["label"], *(float(row[name]) for name in numbers))
        for row in csv.DictReader(table.splitlines())
    }


def device(name: str) -> Device:
    """A device by name; an unknown one raises :class:`ArtifactError`."""
    if name not in devices():
        raise ArtifactError(f"no device called {name!r}; known: {', '.join(devices())}")
    return devices()[name]


def compute_seconds(operations: Mapping[Any, int], on: Device, efficiency: Mapping[str, float] = EFFICIENCY) -> float:
    """Roofline time of kernel calls {(kind, FLOPs, bytes): how many}."""
    total = 0.0
    bandwidth = on.bandwidth * efficiency["bandwidth"]
    for (kind, flops, moved), count in operations.items():
        rate = on.flops * efficiency.get(kind, 1.0)
        total += count * max(flops / rate, moved / bandwidth)
    return total


def step_seconds(compute: float, stored_bytes: float, on: Device, overlapped: bool) -> float:
    """A step's time with ``stored_bytes`` read from and written to storage."""
    moving = stored_bytes / on.storage
    return max(compute, moving) if overlapped else compute + moving


def on_device(rows: Iterable[Mapping[str, str]], name: str) -> list[dict[str, str]]:
    """Rows of the stage ``cost`` with ``device``, ``step_s``, ``step_j`` of one device for the seconds on all."""
    on, found = device(name), []
    for row in rows:
        seconds = float(row[f"{SECONDS}{name}"])
        own = {"device": name, "step_s": text(seconds), "step_j": text(seconds * on.watts)}
        made: dict[str, str] = {}
        for column, value in row.items():
            made |= own if column.startswith(SECONDS) else {column: value}
        found.append(made)
    return found
