"""What makes pre-training quick on a CUDA device: layers and loss compiled, products in TF32, fused attention.

Numbers for a llama of 47 M weights are in EXPERIMENTS.md. Nothing here is used on the CPU, whose results stay as
they were bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

COMPILED_SHAPES = 64  # graphs of one function; a batch of another size is one more


@contextmanager
def quick(model: Any, objective: Callable[..., Tensor]) -> Iterator[Callable[..., Tensor]]:
    """A transformers model made quick for as long as the ``with`` lasts; yields the compiled ``objective``.

    Layers are compiled one by one: they share one graph, which takes seconds where a whole model takes minutes.
    """
    precision, attention = torch.get_float32_matmul_precision(), model.config._attn_implementation
    caches = model.config.use_cache
    limit = torch._dynamo.config.recompile_limit
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    try:
        torch.set_float32_matmul_precision("high")  # TF32: what is not under autocast, Muon's products above all
        torch._dynamo.config.recompile_limit = COMPILED_SHAPES
        model.set_attn_implementation("sdpa")
        model.config.use_cache = False  # a cache knows its layer by number: each would need a graph of its own
        for layer in layers:
            layer.compile(dynamic=False)
        yield torch.compile(objective, dynamic=False)
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        model.set_attn_implementation(attention)
        model.config.use_cache = caches
        torch._dynamo.config.recompile_limit = limit
        torch.set_float32_matmul_precision(precision)


def moved(array: Any, device: torch.device) -> Tensor:
    """A numpy array as a tensor on ``device``; a copy to a GPU does not wait for what the GPU is doing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
