"""A model of a real one's shape with random weights: the whole pipeline at the paper's shapes without a network.

Weights are drawn tensor by tensor into shards; never is more than one shard in memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor

from assyllm import seeding
from assyllm.zoo.architecture import ARCHITECTURES, language_model
from assyllm.zoo.load import INDEX, WEIGHTS
from assyllm.zoo.weights import named, write

SHARD_BYTES = 500_000_000
STD = 0.02  # of matrices; norms are 1 and biases 0, as transformers initialises a model


def write_random(
    hub: dict[str, Any], folder: Path, *names: str | int, dtype: torch.dtype = torch.bfloat16, device: str = "cpu"
) -> int:
    """Write ``config.json`` and safetensors shards into ``folder``; returns the number of weights.

    Args:
        hub: what decides the shape in the real model's ``config.json``.
        names: name what is drawn; the same names give the same bytes on one kind of device.
        device: where weights are drawn.
    """
    config = transformers.AutoConfig.for_model(**hub)
    config.architectures, config.dtype = [ARCHITECTURES[config.model_type].language_model], dtype
    with init_empty_weights(include_buffers=False):
        model: Any = language_model(config)
    model.tie_weights()
    once = {id(tensor): name for name, tensor in reversed(named(model).items())}  # a tied weight: its first name
    shapes = {name: tuple(tensor.shape) for name, tensor in named(model).items() if once[id(tensor)] == name}
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        mine = dtype.itemsize * int(torch.Size(shape).numel())
        if shards[-1] and size + mine > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += mine

    def draw(name: str) -> Tensor:
        return _drawn(name, shapes[name], dtype, device, seeding.seed_for("random", *names, name))

    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, members in zip(files if len(shards) > 1 else [WEIGHTS], shards, strict=True):
        write(folder / file, {name: (dtype, shapes[name]) for name in members}, draw)
    total = sum(int(torch.Size(shape).numel()) for shape in shapes.values())
    if len(shards) > 1:
        places = {name: file for file, members in zip(files, shards, strict=True) for name in members}
        index = {"metadata": {"total_size": total * dtype.itemsize}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    config.save_pretrained(folder)
    return total


def _drawn(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int) -> Tensor:
    if len(shape) < 2:
        return torch.ones(shape, dtype=dtype) if name.endswith("weight") else torch.zeros(shape, dtype=dtype)
    draws = torch.Generator(device).manual_seed(seed)
    return torch.empty(shape, dtype=dtype, device=device).normal_(std=STD, generator=draws)
