"""A frozen linear layer in 4-bit NormalFloat with double quantization (Dettmers 2023), as QLoRA's base has it.

bitsandbytes' own layer quantizes when it is moved to a device, which a layer without storage cannot do; this one
holds the same tensors in the same layout (a test puts bitsandbytes' numbers into it and compares), can be built
empty, and computes the way bitsandbytes does: the weight is dequantized for each product and not kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCK, OUTER = 64, 256  # weights that share an absolute maximum, and maxima that share one
CHUNK = 2**20  # bytes dequantized at a time on a real device: bounds the temporaries of the plain-torch kernel
# the 16 quantiles of a normal distribution (QLoRA, appendix E)
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@torch.library.custom_op("assyllm::dequantize_nf4", mutates_args=())
def dequantize(
    packed: Tensor, maxima: Tensor, outer: Tensor, code: Tensor, offset: Tensor, shape: list[int], dtype: torch.dtype
) -> Tensor:
    """The weight ``shape`` in ``dtype`` of packed pairs (the even weight in the high half).

    Args:
        packed: ``[n / 2]`` uint8.
        maxima: ``[n / 64]`` uint8, indices into ``code``; ``outer``: ``[n / 64 / 256]`` float32; ``offset``: [].
    """
    levels = torch.tensor(LEVELS, device=packed.device)
    pairs = torch.stack((levels.repeat_interleave(16), levels.repeat(16)), dim=-1)  # of every byte
    scale = code[maxima.int()] * outer.repeat_interleave(OUTER)[: maxima.numel()] + offset
    out = torch.empty(packed.numel() * 2, dtype=dtype, device=packed.device)
    rows = out.view(-1, BLOCK)
    step = CHUNK * 2 // BLOCK
    for first in range(0, len(rows), step):
        part = slice(first, min(first + step, len(rows)))
        bytes_ = packed[part.start * BLOCK // 2 : part.stop * BLOCK // 2]
        rows[part] = pairs[bytes_.int()].view(-1, BLOCK).mul_(scale[part, None])
    return out.view(shape)


@dequantize.register_fake
def _(packed: Tensor, maxima: Tensor, outer: Tensor, code: Tensor, offset: Tensor, shape: list[int], dtype: Any) -> Any:
    # one fused kernel, as bitsandbytes' is: nothing but the result is allocated
    return torch.empty(shape, dtype=dtype, device=packed.device)


class _Product(torch.autograd.Function):
    """x W' with W dequantized here and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, shape: list[int], *stored: Tensor) -> Tensor:
        ctx.save_for_backward(*stored)
        ctx.shape = shape
        return nn.functional.linear(x, dequantize(*stored, shape, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        weight = dequantize(*ctx.saved_tensors, ctx.shape, grads[0].dtype)
        return grads[0] @ weight, *[None] * 7


class Nf4Linear(nn.Linear):
    """``nn.Linear`` of the given size whose weight lies in 4 bit; peft takes it for an ordinary linear layer."""

    maxima: Tensor
    outer: Tensor
    code: Tensor
    offset: Tensor

    def __init__(self, linear: nn.Linear, device: Any = "meta") -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        count = linear.weight.numel()
        blocks = -(-count // BLOCK)

        def empty(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        self.weight = nn.Parameter(empty((count // 2, 1), torch.uint8), requires_grad=False)
        self.register_buffer("maxima", empty((blocks,), torch.uint8))
        self.register_buffer("outer", empty((-(-blocks // OUTER),), torch.float32))
        self.register_buffer("code", empty((256,), torch.float32))
        self.register_buffer("offset", empty((), torch.float32))
        self.bias = linear.bias

    @classmethod
    def of(cls, layer: Any) -> Nf4Linear:
        """What a quantized ``bitsandbytes.nn.Linear4bit`` (nf4, double quantization) holds, in our layer."""
        state = layer.weight.quant_state
        linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        made = cls(linear)
        made.weight = nn.Parameter(layer.weight.data, requires_grad=False)
        made.maxima, made.outer = state.absmax, state.state2.absmax
        made.code, made.offset = state.state2.code, state.offset
        made.bias = layer.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the input's dtype; gradients reach the input, never the weight."""
        stored = (self.weight.view(-1), self.maxima, self.outer, self.code, self.offset)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _Product.apply(x, bias, [self.out_features, self.in_features], *stored)


def pack_nf4(base: nn.Module) -> nn.Module:
    """``base`` with its linear layers replaced by empty 4-bit ones, in this very module."""
    for name, part in list(base.named_modules()):
        if isinstance(part, nn.Linear) and not isinstance(part, Nf4Linear):
            base.set_submodule(name, Nf4Linear(part))
    return base
