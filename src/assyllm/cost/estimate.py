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
from assyllm.params import ASSEMBLING, LOW_RANK
from assyllm.zoo.load import first_line, positions


def estimate(
    model: str, method: str, batch: int, tokens: int, optimizer: str, on: str | None, bits: int, resident_layers: int,
    targets: str = "query_value", rank: int = 8, directions: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Peak memory by category (GB), TFLOP, stored and sent bytes of a step, and its time and energy by device.

    Raises:
        ArtifactError: an unknown model, method, optimizer, precision, device or targets.
    """
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
    reading = Reading(batch, tokens, optimizer, targets=targets, rank=rank, directions=directions)
    if model not in CONFIGS:
        try:
            build(config | {"num_hidden_layers": 1}, reading)
        except Exception as error:
            raise ArtifactError(f"{model}: transformers makes no model of this config ({first_line(error)})") from None
    point = device_point(method, config, reading, Residency(resident_layers, 2, bits))
    row = point.row(wanted[0])
    left_out = ("device", "step_s", "step_j", *(("up_gb", "down_gb") if method in ASSEMBLING else ()))
    shared = {key: value for key, value in row.items() if key not in left_out}
    return {
        "model": Path(model).name,
        "method": method,
        "batch": batch,
        "tokens": tokens,
        "optimizer": optimizer,
        "precision": _precision(method, bits),
        "attention": reading.attention,
        **({"targets": targets, "rank": rank} if method in LOW_RANK else {}),
        **({"directions": directions} if method == "fwdllm" else {}),
        **shared,
        "devices": [
            {
                "device": d.name,
                "memory_gb": d.memory_gb,
                "fits": point.total / GB <= d.memory_gb,
                "step_s": point.seconds(d),
                "step_j": point.seconds(d) * d.watts,
            }
            for d in wanted
        ],
        "source": "modelled",
    }


def _precision(method: str, bits: int) -> str:
    if method in ASSEMBLING:
        return f"{bits}-bit pool"
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
    if answer["method"] not in ASSEMBLING:  # theirs hangs on the walk: resources.csv
        lines.append(f"network     {answer['up_gb']:9.3f} GB up, {answer['down_gb']:.3f} GB down a round")
    lines.append(f"{'device':8s}{'memory':>8s}  {'fits':5s}{'step':>12s}{'energy':>12s}")
    for d in answer["devices"]:
        fits = "yes" if d["fits"] else "no"
        lines.append(f"{d['device']:8s}{d['memory_gb']:5.0f} GB  {fits:5s}{d['step_s']:10.2f} s{d['step_j']:10.0f} J")
    return "\n".join(lines)
