"""A quantized copy of a pool, and opening one: linear layers packed, everything else at 16 bit.

Packed are the weights of the linear layers inside the blocks' layers. Embeddings, positions, norms and biases
stay at fp16, as is usual for weight-only quantization; **all** of it counts in every byte figure. Blocks
compute in float32.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from assyllm.artifacts import output_folder, read_json
from assyllm.blocks.block import Block
from assyllm.blocks.pool import BlockInfo, Pool, write_block, write_pool
from assyllm.quantizer.packed import PackedLinear
from assyllm.quantizer.uniform import quantize


def quantize_pool(pool: Path, out: Path, bits: int, group_size: int) -> None:
    """Write a quantized copy of a pool: INT4 or INT8 linear layers, or everything at fp16 (``bits`` 16).

    Args:
        pool: folder of a pool as :mod:`assyllm.blocks.pool` writes it, not quantized yet.
        out: the new folder, written whole or not at all.
    """
    source = Pool.open(pool)
    raw = read_json(pool / "pool.json")
    with output_folder(out) as folder:
        for name in raw["order"]:
            shutil.copytree(pool / "models" / name, folder / "models" / name)
            rows = []
            for old, info in zip(raw["models"][name]["blocks"], source.of_model(name), strict=True):
                tensors = quantize_block(source.block(info.id), bits, group_size)
                row = write_block(folder, info.file, tensors, bits)
                row |= {"parameters": info.parameters, "layers": old["layers"]}
                rows.append(row | ({"group_size": group_size} if bits < 16 else {}))
                source.forget(info.id)
            raw["models"][name]["blocks"] = rows
        write_pool(folder, {name: raw["models"][name] for name in raw["order"]})


def quantize_block(block: Block, bits: int, group_size: int) -> dict[str, Tensor]:
    """A block's tensors as they go to disk: packed linear layers, the rest at fp16."""
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in block.tensors().items()}
    if bits == 16:
        return tensors
    for path, linear in _linears(block).items():
        del tensors[f"{path}.weight"]
        tensors[f"{path}.qweight"], tensors[f"{path}.scales"] = quantize(linear.weight, bits, group_size)
    return tensors


def open_pool(folder: Path) -> Pool:
    """Open a pool, quantized or not, so that its blocks compute from the weights as stored.

    Raises:
        ArtifactError: a file is missing, truncated or altered.
    """
    return Pool.open(folder, prepare)


def prepare(block: Block, info: BlockInfo, tensors: dict[str, Tensor]) -> None:
    """Put packed layers where the block's file holds packed weights (in place)."""
    for path, linear in _linears(block).items():
        packed = tensors.get(f"{path}.qweight")
        if packed is None:
            continue
        bits = 8 if packed.dtype == torch.int8 else 4
        parent, _, leaf = path.rpartition(".")
        size = (linear.in_features, linear.out_features)
        layer = PackedLinear(*size, bits, info.group_size, linear.bias is not None, device="meta")
        setattr(block.get_submodule(parent), leaf, layer)


def _linears(block: Block) -> dict[str, nn.Linear]:
    found = {f"stack.{path}": module for path, module in block.stack.named_modules()}
    return {path: module for path, module in found.items() if isinstance(module, nn.Linear)}
