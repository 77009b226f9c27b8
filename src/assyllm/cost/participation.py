"""Which memory class of the fleet can run which method (paper figure 2): the table that runs read."""

from __future__ import annotations

from typing import Any

from assyllm.cost.memory import peak_memory
from assyllm.cost.shapes import shape_of
from assyllm.params import Blocks, Cost, Fleet, Quantize, Zoo

GB = 1e9
UNBOUNDED = ("ft_oracle", "lora_all", "one_model_head", "choices_only")  # every class takes part, whatever the peak


def participation(
    method: str, zoo: Zoo, fleet: Fleet, cost: Cost, blocks: Blocks, quantize: Quantize
) -> list[dict[str, Any]]:
    """One row per zoo member and memory class, largest class first.

    A class participates if the method's peak at the shape that the member stands for, plus the system's
    reserve, fits. ``ft_oracle`` is the paper's bound without a memory limit, so every class participates; so is
    ``lora_all``, and ``one_model_head`` with its control, which can run one layer at a time. A
    method that assembles blocks of several members needs the largest member's memory: its row ``pool``.
    """
    peaks = {
        name: peak_memory(method, shape_of(member.stands_for), cost, blocks, quantize.mean_bits)
        for name, member in zoo.models.items()
    }
    peaks["pool"] = max(peaks.values(), key=lambda peak: peak.total)
    rows = []
    for model, peak in peaks.items():
        for memory_gb in sorted(fleet.memory_gb, reverse=True):
            fits = peak.total / GB + fleet.reserve_gb <= memory_gb
            rows.append(
                {
                    "method": method,
                    "model": model,
                    "stands_for": zoo.models[model].stands_for if model in zoo.models else "largest member",
                    "memory_gb": memory_gb,
                    "share": fleet.memory_gb[memory_gb],
                    "peak_gb": peak.total / GB,
                    "parameters_gb": peak.parameters / GB,
                    "gradients_gb": peak.gradients / GB,
                    "activations_gb": peak.activations / GB,
                    "optimizer_gb": peak.optimizer / GB,
                    "participates": int(fits or method in UNBOUNDED),
                    "source": "modelled",
                }
            )
    return rows
