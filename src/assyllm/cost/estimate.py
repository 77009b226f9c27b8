"""Anyone's question: what does a step of a method cost on a model of this shape, on this device?"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from assyllm.artifacts import ArtifactError
from assyllm.cost.devices import device, devices
from assyllm.cost.participation import OPTIMIZERS
from assyllm.cost.point import GB, device_point
from assyllm.cost.selection import Residency
from assyllm.cost.shapes import CONFIGS, config_of
from assyllm.cost.step import Reading, build
from assyllm.params import ASSEMBLING, FROZEN_BASE, HEADS, LOW_RANK
from assyllm.zoo.load import first_line, positions

MOST = 100_000  # rows, tokens, layers, numbers of a rank
MOST_DIRECTIONS = 1000  # each is walked: 13 ms
WALKED = (*ASSEMBLING, *HEADS)  # what travels hangs on their rounds: resources.csv


def estimate(
    model: str, method: str, batch: int, tokens: int, optimizer: str, on: str | None, bits: int, resident_layers: int,
    targets: str = "query_value", rank: int = 8, directions: int = 1, base_bits: int = 8, reserve_gb: float = 0.5,
) -> dict[str, Any]:  # fmt: skip
    """Peak memory by category (GB), TFLOP, stored and sent bytes of a step, and its time and energy by device.

    Args:
        bits: of a pool's weights; ``base_bits`` of a frozen base's.
        reserve_gb: of a device's memory, what its system keeps.

    Raises:
        ArtifactError: an unknown model, method, optimizer, precision, device or targets, a rank above the
            model's width, or a number that is out of range.
    """
    counts = {"batch": batch, "length": tokens, "resident_layers": resident_layers, "rank": rank}
    for name, number in (counts | {"directions": directions}).items():
        largest = MOST_DIRECTIONS if name == "directions" else MOST
        if not 1 <= number <= largest:
            raise ArtifactError(f"{name}: {number} is not from 1 to {largest}")
    if base_bits not in (8, 16):
        raise ArtifactError(f"base_bits: {base_bits} is none of 8, 16")
    if targets not in ("query_value", "all"):
        raise ArtifactError(f"targets: {targets!r} is none of query_value, all")
    if optimizer not in OPTIMIZERS:
        raise ArtifactError(f"no optimizer called {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    if bits not in (4, 8, 16):
        raise ArtifactError(f"bits: {bits} is none of 4, 8, 16")
    wanted = [device(on)] if on else list(devices().values())
    config = config_of(model)
    # a llama's positions turn, the others' are learned
    most = tokens if config["model_type"] == "llama" else positions(SimpleNamespace(**config))
    if tokens > most:
        raise ArtifactError(f"length: {tokens} tokens are more than the {most} positions of {model}")
    if method in LOW_RANK and rank > (width := config["hidden_size"]):
        raise ArtifactError(f"rank: {rank} is more than the {width} numbers of a state of {model}")
    reading = Reading(batch, tokens, optimizer, targets=targets, rank=rank, directions=directions, base_bits=base_bits)
    if model not in CONFIGS:
        try:
            build(config | {"num_hidden_layers": 1}, reading)
        except Exception as error:
            raise ArtifactError(f"{model}: transformers makes no model of this config ({first_line(error)})") from None
    point = device_point(method, config, reading, Residency(resident_layers, 2, bits))
    left_out = ("up_gb", "down_gb") if method in WALKED else ()
    shared = {key: value for key, value in point.row().items() if key not in left_out}
    return {
        "model": Path(model).name,
        "method": method,
        "batch": batch,
        "tokens": tokens,
        "optimizer": optimizer,
        "precision": _precision(method, bits, base_bits),
        "attention": reading.attention,
        **({"targets": targets, "rank": rank} if method in LOW_RANK else {}),
        **({"directions": directions} if method == "fwdllm" else {}),
        **shared,
        "reserve_gb": reserve_gb,
        "devices": [
            {
                "device": d.name,
                "memory_gb": d.memory_gb,
                "fits": point.total / GB <= d.memory_gb - reserve_gb,
                "step_s": point.seconds(d),
                "step_j": point.seconds(d) * d.watts,
            }
            for d in wanted
        ],
        "source": "modelled",
    }


def _precision(method: str, bits: int, base_bits: int) -> str:
    if method in ASSEMBLING:
        return f"{bits}-bit pool"
    if method in FROZEN_BASE and base_bits < 16:
        return f"{base_bits}-bit base, 16-bit adapters"
    return "4-bit base, 16-bit adapters" if method.startswith("qlora") else "16 bit"


def table(answer: dict[str, Any]) -> str:
    """The answer as text."""
    asked = "{model}, {method}: batch {batch} x {tokens} tokens, {precision}, {attention} attention, {optimizer}"
    lines = [
        asked.format(**answer),
        f"peak memory {answer['peak_gb']:9.2f} GB",
    ]  # fmt: skip
    for name in ("parameters", "gradients", "activations", "optimizer", "temporary", "workspace"):
        lines.append(f"  {name:12s}{answer[f'{name}_gb']:7.2f} GB")
    lines.append(f"computing   {answer['tflop']:9.1f} TFLOP a step")
    lines.append(f"storage     {answer['stored_gb']:9.2f} GB read and written a step")
    if answer["method"] not in WALKED:
        lines.append(f"network     {answer['up_gb']:9.3f} GB up, {answer['down_gb']:.3f} GB down a round")
    reserved = f"({answer['reserve_gb']:g} GB reserved)"
    lines.append(f"{'device':8s}{'memory':>8s}  {'fits':5s}{'step':>12s}{'energy':>12s}   {reserved}")
    for d in answer["devices"]:
        fits = "yes" if d["fits"] else "no"
        lines.append(f"{d['device']:8s}{d['memory_gb']:5.0f} GB  {fits:5s}{d['step_s']:10.2f} s{d['step_j']:10.0f} J")
    return "\n".join(lines)
