"""Sections ``fleet`` and ``cost``: the clients' devices, and what is modelled of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from assyllm.params.section import Count, Fraction, Section


class Fleet(Section):
    """Memory of the clients' devices: GB (10^9 bytes) -> share of the clients."""

    memory_gb: dict[Count, Fraction]
    reserve_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _sums_to_one(self) -> Fleet:
        total = sum(self.memory_gb.values())
        if abs(total - 1) > 1e-9:
            raise ValueError(f"memory_gb: the shares sum to {total:g}, not 1")
        return self


class Cost(Section):
    """The declared choices behind every modelled memory figure."""

    batch: Count
    tokens: Count
    bytes_per_weight: Literal[2, 4]
    optimizer: Literal["sgd", "adamw"]
    resident_layers: Count
    resident_blocks: Count
    device: Literal["nano", "tx2", "phone", "orin", "a100", "h100", "h200"]
