"""A linear layer that computes from packed integers, forward and backward to its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from assyllm.quantizer.uniform import dequantize, quantize


class _PackedMatmul(torch.autograd.Function):
    """x W' with W dequantized on the fly, in the backward pass again: no float copy of W is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, qweight: Tensor, scales: Tensor, columns: int, group: int) -> Tensor:
        ctx.save_for_backward(qweight, scales)
        ctx.shape = (columns, group)
        return x @ dequantize(qweight, scales, columns, group).to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        qweight, scales = ctx.saved_tensors
        weight = dequantize(qweight, scales, *ctx.shape).to(grads[0].dtype)
        return grads[0] @ weight, None, None, None, None


class PackedLinear(nn.Module):
    """``nn.Linear`` whose weight lies in INT8 or INT4 with fp16 group scales; the weight is frozen.

    Buffers: ``qweight`` and ``scales`` (see :mod:`assyllm.quantizer.uniform`), ``bias`` fp16 or absent.
    """

    qweight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, bits: int, group_size: int, bias: bool, device: Any = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group_size = bits, group_size
        columns = in_features if bits == 8 else -(-in_features // 2)
        kind = torch.int8 if bits == 8 else torch.uint8
        groups = -(-in_features // group_size)
        self.register_buffer("qweight", torch.zeros(out_features, columns, dtype=kind, device=device))
        self.register_buffer("scales", torch.zeros(out_features, groups, dtype=torch.float16, device=device))
        spare = torch.zeros(out_features, dtype=torch.float16, device=device) if bias else None
        self.register_buffer("bias", spare)

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: int, group_size: int) -> PackedLinear:
        """Quantize an ordinary layer."""
        made = cls(linear.in_features, linear.out_features, bits, group_size, linear.bias is not None)
        made.qweight, made.scales = quantize(linear.weight, bits, group_size)
        if linear.bias is not None:
            made.bias = linear.bias.detach().half()
        return made

    def weight(self) -> Tensor:
        """The float32 weight ``[out, in]`` that the packed one stands for."""
        return dequantize(self.qweight, self.scales, self.in_features, self.group_size)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the input's dtype; gradients reach the input."""
        out = _PackedMatmul.apply(x, self.qweight, self.scales, self.in_features, self.group_size)
        return out if self.bias is None else out + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group_size={self.group_size}"
