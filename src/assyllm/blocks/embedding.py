"""A model's embedding on its own: what a device needs to read a text the way another model would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assyllm.blocks.block import Block
from assyllm.blocks.families import family as family_of
from assyllm.blocks.split import empty_block

PREFIX = "embed."  # of its tensors in a start block's file


class Embedding(nn.Module):
    """Token ids ``[B, T]`` and mask ``[B, T]`` to the states ``[B, T, d]`` that the model's first layer receives."""

    def __init__(self, model: str, family: str, embed: nn.ModuleDict) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.embed = embed

    @torch.no_grad()
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return family_of(self.family).embed(self.embed, ids, mask)


def load_embedding(
    model: str,
    family: str,
    config: Any,
    tensors: dict[str, Tensor],
    prepare: Callable[[Block, dict[str, Tensor]], None] | None = None,
) -> Embedding:
    """The embedding of a model from a start block's tensors (others than ``embed.*`` are passed over), frozen.

    Args:
        prepare: swaps in tables that look up packed weights, where the tensors hold such.
    """
    block = empty_block(model, family, (0, 1), config)
    if prepare is not None:
        prepare(block, tensors)
    module = Embedding(model, family, block.embed)
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    wanted = module.state_dict()
    module.load_state_dict({n: t.to(wanted[n].dtype) for n, t in own.items()}, assign=True)
    return module.eval().requires_grad_(False)
