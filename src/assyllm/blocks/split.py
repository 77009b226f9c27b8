"""A model into blocks, and blocks into the same model again."""

from __future__ import annotations

import copy
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor, nn

from assyllm.artifacts import ArtifactError
from assyllm.blocks.block import Block, kind_of
from assyllm.blocks.families import family as family_of
from assyllm.blocks.families import find


def split(model: nn.Module, name: str, family: str, segments: list[int]) -> list[Block]:
    """Cut a language model into blocks that share its modules (nothing is copied).

    Args:
        model: transformers' ``*ForCausalLM`` or ``*ForMaskedLM`` of the family.
        name: the zoo member's name, the first part of its block ids.
        segments: layers of each block, first to last; they sum to the model's layers.

    Raises:
        ArtifactError: the model is not of the family, reads another way than it, has layers of other than full
            attention, or the segments do not sum to its layers.
    """
    spec = family_of(family)
    trunk = find(model, spec.trunk)
    stack = find(trunk, spec.layers) if trunk is not None else None
    if trunk is None or not isinstance(stack, nn.ModuleList):
        raise ArtifactError(f"{name}: {type(model).__name__} is not a model of the {family} family")
    if sum(segments) != len(stack) or min(segments) < 1 or len(segments) < 2:
        raise ArtifactError(f"{name}: segments {segments} do not cut {len(stack)} layers into blocks")
    config = model.config
    if not spec.architecture.causal and getattr(config, "is_decoder", False):
        raise ArtifactError(f"{name}: is_decoder in its config; the {family} family reads both ways here")
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if kinds:
        raise ArtifactError(f"{name}: layers of {kinds[0]}; a block's layers share one mask, of full attention")
    blocks = []
    for last, size in zip(accumulate(segments), segments, strict=True):
        first = last - size
        blocks.append(_block(trunk, name, family, (first, last), len(stack), config, stack[first:last]))
    return blocks


def _block(
    trunk: nn.Module,
    name: str,
    family: str,
    layers: tuple[int, int],
    total: int,
    config: Any,
    stack: nn.ModuleList,
) -> Block:
    spec = family_of(family)
    kind = kind_of(*layers, total)
    parts = {path: find(trunk, path) for path in spec.embeddings} if kind == "start" else {}
    return Block(
        model=name,
        family=family,
        layers=layers,
        kind=kind,
        config=config,
        embed=nn.ModuleDict({path: part for path, part in parts.items() if part is not None}),
        stack=stack,
        norm=find(trunk, spec.norm) if kind == "end" and spec.norm else None,
        rotary=find(trunk, spec.rotary) if spec.rotary else None,
    )


def empty_block(name: str, family: str, layers: tuple[int, int], config: Any) -> Block:
    """A block built from its model's config alone, weights on the meta device, to be loaded into."""
    spec = family_of(family)
    config = copy.deepcopy(config)
    if getattr(config, "_attn_implementation", None) is None:
        config._attn_implementation = "sdpa"
    total = int(config.num_hidden_layers)
    built = copy.deepcopy(config)
    built.num_hidden_layers = layers[1] - layers[0]  # only this block's layers are built
    trunk = find(spec.build(built), spec.trunk)
    assert trunk is not None
    stack = find(trunk, spec.layers)
    assert isinstance(stack, nn.ModuleList)
    return _block(trunk, name, family, layers, total, config, stack)


def head_of(model: nn.Module, family: str) -> nn.Sequential:
    """The language-model head: what turns an end block's states into logits."""
    parts = (find(model, path) for path in family_of(family).head)
    return nn.Sequential(*[part for part in parts if part is not None])


class Joined(nn.Module):
    """Blocks of one model in order, and its head: logits bit-equal to the model's."""

    def __init__(self, blocks: list[Block], lm_head: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.lm_head = lm_head

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids ``[B, T]`` and mask ``[B, T]`` to logits ``[B, T, vocabulary]``."""
        hidden = ids
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.lm_head(hidden)


def join(blocks: list[Block], lm_head: nn.Module) -> Joined:
    """Put a model's blocks together again.

    Raises:
        ArtifactError: the blocks are not one model's, whole and in order.
    """
    ends = [block.layers for block in blocks]
    whole = bool(blocks) and all(a[1] == b[0] for a, b in pairwise(ends))
    if not whole or len({b.model for b in blocks}) != 1 or blocks[0].kind != "start" or blocks[-1].kind != "end":
        raise ArtifactError(f"blocks {[b.id for b in blocks]} are not one whole model in order")
    return Joined(blocks, lm_head)
