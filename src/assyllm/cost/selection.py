"""AssyLLM's step on a device at true shape: scoring a candidate by forward passes.

Scoring walks a chain of blocks, forward only, with as few of them in memory as the device's budget allows: a block
is a list of layers, is brought in when its turn comes and leaves before the next but ``resident`` comes in. The
blocks are :class:`assyllm.blocks.block.Block`, packed ones compute from :class:`DeviceLinear`, as in the simulator.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from assyllm.adapter.fixed_attention import FixedAttentionAdapter, patterns
from assyllm.adapter.reading import Join
from assyllm.blocks.block import Block
from assyllm.blocks.families import family
from assyllm.blocks.split import empty_block
from assyllm.cost.step import DTYPES, Elsewhere, Reading, Step, drop, fill, questions, shapes_only
from assyllm.cost.trace import allocating, repeated
from assyllm.quantizer.packed import TILE_WEIGHTS, PackedLinear
from assyllm.zoo.forward import ENCODERS


@dataclass(frozen=True, slots=True)
class Residency:
    """How much of a chain is in memory: ``resident`` blocks of ``layers`` layers, at ``bits`` a weight.

    ``bits`` count scales (16 bit a group); where they are between two whole widths, rows of both are mixed.
    """

    layers: int = 4
    resident: int = 1
    bits: float = 8
    group_size: int = 64


def shell(config: dict[str, Any], layers: tuple[int, int], residency: Residency, reading: Reading) -> Block:
    """A block without its weights, ready to be filled: packed integers or 16 bit, as it comes from the pool."""
    values = family(config["model_type"]).config(config)
    values._attn_implementation = reading.attention
    with shapes_only():
        block = empty_block("pool", config["model_type"], layers, values)
        if residency.bits < 16:
            pack(block, residency)
        for parameter in block.parameters():
            parameter.data = parameter.data.to(DTYPES[reading.bytes_per_weight])
    return block.eval()


class DeviceLinear(PackedLinear):
    """Packed rows with a GPU's tile: fakes say that they are on the CPU, whose tiles are small."""

    small = False

    def tiles(self) -> list[tuple[int, int]]:
        """Row ranges that are made float together."""
        step = max(1, TILE_WEIGHTS["cuda"] // self.in_features)
        return [(low, min(low + step, self.out_features)) for low in range(0, self.out_features, step)]

    def weight_rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Some rows as floating point; what that takes is traced once for all layers of one layout."""
        layout = self.layout
        key = (tuple(layout.counts.items()), layout.columns, layout.group_size, start, stop, dtype)
        return repeated(key, lambda: layout.rows_of(self.packed(), start, stop, dtype))


def pack(block: Block, residency: Residency) -> None:
    """Put packed layers (on the meta device) in place of a block's linear ones."""
    for path, linear in list(block.stack.named_modules()):
        if isinstance(linear, nn.Linear):
            counts = row_widths(linear.out_features, residency)
            size = (linear.in_features, residency.group_size, linear.bias is not None)
            block.stack.set_submodule(path, DeviceLinear(counts, *size, device="meta"))


def row_widths(rows: int, residency: Residency) -> dict[int, int]:
    """Rows of each width whose mean, scales included, is ``residency.bits``: of the whole widths below and above."""
    weight = min(8.0, max(2.0, residency.bits - 16 / residency.group_size))
    low = min(int(weight), 7)
    high = round(rows * (weight - low))
    return {width: count for width, count in ((low, rows - high), (low + 1, high)) if count}


def chain_of(layers: int, size: int) -> list[tuple[int, int]]:
    """Layer ranges of blocks of ``size`` layers, the last one perhaps shorter."""
    return [(first, min(first + size, layers)) for first in range(0, layers, size)]


def scoring_step(
    config: dict[str, Any], reading: Reading, residency: Residency, device: str = "cpu", joined: bool = False
) -> Step:
    """One walk of a batch through a chain as long as the model, and the pooled states that are compared.

    The chain is the model's own layers: the widest states and the largest blocks that a pool of these shapes has.
    Blocks come in while the last one computes where ``resident`` is 2 or more.

    Args:
        joined: before every block but the first stands an adapter of ``assyllm`` (:class:`FixedAttentionAdapter`),
            which comes and goes with it, as if none followed in its own model and none had its tokens.
    """
    plan = chain_of(int(config["num_hidden_layers"]), residency.layers)
    blocks = [shell(config, layers, residency, reading) for layers in plan]
    dtype = DTYPES[reading.bytes_per_weight]
    batch = questions(config["model_type"], reading, config["vocab_size"], device)
    ids = batch.ids.flatten(0, 1)
    mask = torch.ones(ids.shape, dtype=torch.bool, device=device)
    mask[0, -1] = False  # some row is shorter: a batch without padding would need no mask
    pools = batch.pools.flatten(0, 1).to(dtype)
    storage, held = Elsewhere(device), [ids, mask, pools]
    if joined:
        rows, length = ids.shape
        embedded = torch.zeros(rows, length, int(config["hidden_size"]), dtype=dtype, device=device)
        align = torch.eye(length, dtype=dtype, device=device).repeat(rows, 1, 1)
        join = Join(embedded, mask, align, mask, config["model_type"] not in ENCODERS)
        held += [embedded, align]

    def read(part: nn.Module) -> None:
        storage.read_bytes += sum(t.numel() * t.element_size() for t in part.state_dict().values())

    shape = json.dumps(config | {"num_hidden_layers": None}, sort_keys=True)

    def through(block: Block, hidden: Tensor) -> Tensor:
        """The states behind a block: traced once for all that are alike."""
        alike = (shape, reading, residency, block.kind, block.layers[1] - block.layers[0])
        return repeated(alike, lambda: block(hidden, mask))

    def run() -> Tensor:
        inside: deque[tuple[Block, FixedAttentionAdapter | None]] = deque()
        hidden, vectors = ids, ids
        with torch.no_grad():
            for i, block in enumerate(blocks):
                if len(inside) == residency.resident:
                    drop(inside.popleft()[0])
                fill(block, device)
                read(block)
                adapter = rereading(join) if joined and i else None
                inside.append((block, adapter))
                if adapter is not None:
                    read(adapter)
                    hidden = adapter(hidden, join)
                hidden = through(block, hidden)
                vectors = pools @ hidden
            while inside:
                drop(inside.popleft()[0])
        return vectors

    return Step(run, {"temporary": held}, threads=1, storage=storage, overlapped=residency.resident > 1)


def rereading(join: Join, rank: int = 16) -> FixedAttentionAdapter:
    """An adapter of zeros between two blocks of the width of ``join``, which it reads."""
    like, width = join.embedded, join.embedded.shape[-1]
    seen = patterns(Join(like[:1, :1], join.mask[:1, :1], None, join.mask, join.causal)).shape[-1]
    with allocating("parameters"):
        return FixedAttentionAdapter(
            like.new_zeros(seen, width), like.new_zeros(width, rank), like.new_zeros(rank, width), like.new_zeros(width)
        )
