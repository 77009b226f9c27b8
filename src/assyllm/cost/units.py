"""What a pool's units of swapping weigh at the true shapes of the models that its members stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assyllm.cost.shapes import shape_of


def unit_bytes(models: Mapping[str, Any]) -> dict[str, int]:
    """Bytes in INT8 of every unit (``<block>/embed``, ``<block>/<layer>``), blocks in the pool's order.

    A member of fewer layers than the model it stands for has as many blocks; each of its layers becomes several.

    Args:
        models: ``models`` of a ``pool.json``.
    """
    found = {}
    for name, model in models.items():
        shape = shape_of(model["stands_for"])
        for block in model["blocks"]:
            first, last = block["layers"]
            if first == 0:
                input_rows = shape.vocabulary + shape.positions + shape.token_types
                found[f"{name}:{first}-{last}/embed"] = input_rows * shape.hidden
            ends = (edge * shape.layers // model["layers"] for edge in (first, last))
            for i in range(-next(ends) + next(ends)):
                found[f"{name}:{first}-{last}/{i}"] = shape.layer_parameters
    return found
