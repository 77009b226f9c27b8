"""Which memory class of the fleet can run which method (paper figure 2): the table that runs read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from assyllm.artifacts import ArtifactError
from assyllm.cost.methods import FORWARD, STREAMED, WHOLE
from assyllm.cost.point import GB, NOTHING, Point, device_point
from assyllm.cost.same_step import SAME_STEP, participates
from assyllm.cost.selection import Residency
from assyllm.cost.shapes import config_of
from assyllm.cost.step import Reading
from assyllm.params import (
    ASSEMBLING,
    FROZEN_BASE,
    NO_DEVICE,
    Blocks,
    Cost,
    Fleet,
    FrozenBase,
    FwdLLMTuning,
    LoraTuning,
    Quantize,
    Zoo,
)
from assyllm.zoo.load import positions

MODEL = "llama-7b"  # the shape of the curves
OPTIMIZERS = ("sgd", "adamw")
LENGTHS, BATCHES, RESIDENT, BITS = (128, 256, 512), (1, 4, 8, 16), (1, 2, 4), (16, 8, 4)


def reading_of(cost: Cost, base: FrozenBase, adapters: LoraTuning | None = None) -> Reading:
    """The declared reading, with the low-rank adapters that the method's runs train."""
    reading = Reading(cost.batch, cost.tokens, cost.optimizer, cost.bytes_per_weight, base_bits=base.bits)
    if adapters is None:
        return reading
    asked = adapters.max_directions if isinstance(adapters, FwdLLMTuning) else 1  # the cap decides (EXPERIMENTS.md)
    return replace(reading, targets=adapters.targets, rank=adapters.rank, directions=asked)


def residency_of(cost: Cost, quantize: Quantize) -> Residency:
    """What of the pool a device keeps in memory."""
    return Residency(cost.resident_layers, cost.resident_blocks, quantize.mean_bits, quantize.group_size)


def participation(
    method: str,
    zoo: Zoo,
    blocks: Blocks,
    fleet: Fleet,
    cost: Cost,
    quantize: Quantize,
    base: FrozenBase,
    adapters: LoraTuning | None = None,
) -> list[dict[str, Any]]:
    """One row per zoo member and memory class, largest class first.

    A class participates if the method's peak at the shape that the member stands for, plus the system's reserve, fits
    (:func:`participates`). A method that assembles blocks of several members needs the largest member's memory: its
    row ``pool``.

    Args:
        adapters: the tuning of a method that trains low-rank ones, which are measured as its runs train them.

    Raises:
        ArtifactError: more tokens than a member has positions.
    """
    shapes = {name: member.stands_for for name, member in zoo.models.items()}
    points: dict[str, Point] = {}
    measured: dict[str, Point] = {}
    reading, kept = reading_of(cost, base, adapters), residency_of(cost, quantize)
    for name, shape in shapes.items():
        if cost.tokens > (most := positions(SimpleNamespace(**config_of(shape)))):
            raise ArtifactError(f"cost.tokens: {cost.tokens} is more than the {most} that {shape} (model {name}) reads")
        key = repr(config_of(shape))  # Vicuna's shape is Llama's
        if key not in measured:
            measured[key] = device_point(method, config_of(shape), reading, kept)
        points[name] = measured[key]
    points["pool"] = max((points[name] for name in blocks.cut(zoo)), key=lambda point: point.total)
    rows = []
    for name, point in points.items():
        for memory_gb in sorted(fleet.memory_gb, reverse=True):
            rows.append(
                {
                    "method": method,
                    "model": name,
                    "stands_for": shapes.get(name, "largest member"),
                    "memory_gb": memory_gb,
                    "share": fleet.memory_gb[memory_gb],
                    "batch": cost.batch,
                    "tokens": cost.tokens,
                    "optimizer": cost.optimizer,
                    "pool_bits": quantize.mean_bits if method in ASSEMBLING else "",
                    "targets": reading.targets if adapters else "",
                    "rank": reading.rank if adapters else "",
                    **point.row(),
                    **point.times(),
                    "participates": participates(method, point.total / GB, memory_gb, fleet),
                    "source": "modelled",
                }
            )
    return rows


def _readings(method: str, base: Reading, kept: Residency) -> Iterator[tuple[str, Reading, Residency]]:
    """(what varies, reading, residency): one thing at a time around the declared reading."""
    for tokens in LENGTHS:
        yield "tokens", replace(base, tokens=tokens), kept
    for batch in BATCHES:
        yield "batch", replace(base, batch=batch), kept
    if method not in FORWARD:
        for optimizer in OPTIMIZERS:
            yield "optimizer", replace(base, optimizer=optimizer), kept
    for size in (2, 4):
        yield "bytes_per_weight", replace(base, bytes_per_weight=size), kept
    if method in FROZEN_BASE:
        for bits in (16, 8):
            yield "bits", replace(base, base_bits=bits), kept
    if method in STREAMED:
        for resident in RESIDENT:
            yield "resident_blocks", base, replace(kept, resident=resident)
        for bits in BITS:
            yield "bits", base, replace(kept, bits=bits)


def _bits(method: str, reading: Reading, residency: Residency) -> float:
    """Bits of a frozen weight: of the pool's, of the base's, or of a weight that is trained."""
    if method in STREAMED:
        return residency.bits
    return 8 if method in FROZEN_BASE and reading.base_bits == 8 else 8 * reading.bytes_per_weight


CURVES = (
    "method", "stands_for", "varies", "batch", "tokens", "optimizer", "bytes_per_weight", "bits", "resident_blocks",
    *NOTHING.row(), *NOTHING.times(), "smallest_gb", "participation", "source",
)  # fmt: skip


def curves(
    method: str, fleet: Fleet, cost: Cost, quantize: Quantize, base: FrozenBase, adapters: LoraTuning | None = None
) -> list[dict[str, Any]]:
    """Sensitivity at the shape of Llama-7B: one row per point, with the smallest memory class that it fits.

    None for methods whose step is another's, or a forward pass of the whole model.
    """
    rows: list[dict[str, Any]] = []
    done: dict[Any, Point] = {}
    if method in (*SAME_STEP, *WHOLE, *NO_DEVICE):
        return rows
    for what, reading, residency in _readings(method, reading_of(cost, base, adapters), residency_of(cost, quantize)):
        key = (reading, residency)
        if key not in done:
            done[key] = device_point(method, config_of(MODEL), reading, residency)
        fitting = [m for m in fleet.memory_gb if done[key].total / GB + fleet.reserve_gb <= m]
        rows.append(
            {
                "method": method,
                "stands_for": MODEL,
                "varies": what,
                "batch": reading.batch,
                "tokens": reading.tokens,
                "optimizer": reading.optimizer,
                "bytes_per_weight": reading.bytes_per_weight,
                "bits": _bits(method, reading, residency),
                "resident_blocks": residency.resident if method in STREAMED else "",
                **done[key].row(),
                **done[key].times(),
                "smallest_gb": min(fitting) if fitting else "none",
                "participation": sum(fleet.memory_gb[m] for m in fitting),
                "source": "modelled",
            }
        )
    return rows
