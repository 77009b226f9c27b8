"""A frozen base in INT8: every row of a linear layer's weight as integers of its largest weight's 127th part.

So LLM.int8 keeps weights (Dettmers 2022, vector-wise); the paper's baselines run on such a base (section 5.1). A device
keeps the integers and makes a layer's weight float for each product. The simulator vectorises over clients, so it runs
on the very weights that the integers stand for, rounded once.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

LEVELS = 127


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` [out, in] as int8 [out, in] and float32 scales [out, 1]."""
    scale = (weight.float().abs().amax(1, keepdim=True) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight.float() / scale).round().to(torch.int8), scale


class Int8Linear(nn.Linear):
    """``nn.Linear`` of frozen INT8 rows; peft takes it for an ordinary linear layer."""

    scale: nn.Parameter

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        integers, scale = quantised(linear.weight.detach())
        self.weight = nn.Parameter(integers, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the input's dtype; gradients reach the input, never the weight."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _Product.apply(x, self.weight, self.scale, bias)


class _Product(torch.autograd.Function):
    """x W' with W made float here and again in the backward pass: no float copy of it is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return nn.functional.linear(x, dense(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        weight, scale = ctx.saved_tensors
        return grads[0] @ dense(weight, scale, grads[0].dtype), None, None, None


def dense(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What the integers stand for, [out, in] in ``dtype``."""
    return weight.to(dtype) * scale.to(dtype)


def int8_layers(base: nn.Module) -> nn.Module:
    """``base`` with its linear layers in INT8, in this very module (on the meta device: empty ones)."""
    for name, part in list(base.named_modules()):
        if type(part) is nn.Linear:
            base.set_submodule(name, Int8Linear(part))
    return base


@torch.no_grad()
def rounded(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose linear layers hold the weights that their INT8 rows stand for.

    A language head stays as it is: no method uses it, and its matrix may be the embedding.
    """
    plain = copy.deepcopy(model)
    for part in getattr(plain, "base_model", plain).modules():
        if isinstance(part, nn.Linear):
            part.weight.copy_(dense(*quantised(part.weight), part.weight.dtype))
    return plain
