"""How far a quantized block's output is from the exact one's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from assyllm.blocks.block import Block
from assyllm.quantizer.calibrate import Batches, batches, native_inputs

if TYPE_CHECKING:
    from assyllm.blocks.pool import Pool


@torch.no_grad()
def output_error(exact: Block, low: Block, received: Batches) -> float:
    """Root mean square over examples of ||y^ - y|| / ||y||, padding left out; both blocks get the exact inputs."""
    ratios = []
    for hidden, mask in received:
        real = mask.unsqueeze(-1)
        y, close = exact(hidden, mask) * real, low(hidden, mask) * real
        ratios.append((close - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1).clamp(min=1e-12))
    return float(torch.cat(ratios).pow(2).mean().sqrt())


def pool_errors(exact: Pool, low: Pool, lines: Sequence[str], max_tokens: int) -> dict[str, float]:
    """Each block's output error on texts, at the inputs that it natively receives in the exact model."""
    found = {}
    for model in exact.models:
        for info, block, received in native_inputs(exact, model, batches(exact, model, lines, max_tokens)):
            found[info.id] = output_error(block, low.block(info.id), received)
            low.forget(info.id)
    return found
