"""bitsandbytes' nf4 and LLM.int8 as named back ends of a pool's linear layers (for comparison with ours).

Built on its functions, not on its modules: an eval-mode ``Linear4bit`` repacks itself on some CPUs and then gives
no gradient to its input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from assyllm.artifacts import ArtifactError
from assyllm.quantizer.packed import ASKED

BLOCK = 64  # nf4 weights that share a float32 scale; bitsandbytes' default
BACKENDS = ("nf4", "llm_int8")
OUTLIER = 6.0  # LLM.int8: input columns with values beyond it are multiplied in 16 bit


def encode(weight: Tensor, backend: str) -> dict[str, Tensor]:
    """The tensors that a back end stores for a weight ``[out, in]``: ``nf4`` or ``int8``, and ``absmax``.

    Raises:
        ArtifactError: an unknown back end.
    """
    import bitsandbytes.functional as bnb

    if backend == "nf4":
        packed, state = bnb.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
        return {"nf4": packed.flatten(), "absmax": state.absmax}
    if backend == "llm_int8":
        packed, absmax, _ = bnb.int8_vectorwise_quant(weight.half())
        return {"int8": packed, "absmax": absmax}
    raise ArtifactError(f"no back end {backend!r}; {', '.join(BACKENDS)}")


class _Nf4Matmul(torch.autograd.Function):
    """x W' with W made float for the product only, in the backward pass again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(ASKED)
        return x @ layer.dense(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        _ = ctx.saved_tensors
        return grads[0] @ ctx.layer.dense(grads[0].dtype), None


class Nf4Linear(nn.Module):
    """A linear layer on bitsandbytes' 4-bit NormalFloat weights."""

    nf4: Tensor
    absmax: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool, device: Any = None) -> None:
        super().__init__()
        number = in_features * out_features
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("nf4", torch.zeros(-(-number // 2), dtype=torch.uint8, device=device))
        self.register_buffer("absmax", torch.zeros(-(-number // BLOCK), device=device))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float16, device=device) if bias else None)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight ``[out, in]`` that the packed one stands for.

        Decoded as one row: bitsandbytes' kernel for CPUs is wrong on some matrices whose rows do not end with a block
        of 64 weights (seen in 0.50.2 with avx512 at rows of 32, 48, 96, 224, 288).
        """
        import bitsandbytes.functional as bnb

        state = bnb.QuantState(
            absmax=self.absmax,
            shape=torch.Size((1, self.out_features * self.in_features)),
            code=bnb.get_4bit_type("nf4", device=self.nf4.device),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
        )
        return bnb.dequantize_4bit(self.nf4.view(-1, 1), state).view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the input's dtype; gradients reach the input."""
        out = _Nf4Matmul.apply(x, self)
        return out if self.bias is None else out + self.bias.to(x.dtype)


class Int8Linear(nn.Module):
    """A linear layer by LLM.int8 (Dettmers et al. 2022): INT8 products, outlier columns in 16 bit."""

    int8: Tensor
    absmax: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool, device: Any = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("int8", torch.zeros(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("absmax", torch.zeros(out_features, device=device))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float16, device=device) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the input's dtype; gradients reach the input."""
        import bitsandbytes as bnb

        state = bnb.MatmulLtState()
        state.CB, state.SCB, state.threshold, state.has_fp16_weights = self.int8, self.absmax, OUTLIER, False
        out = bnb.matmul(x.half(), self.int8, state=state).to(x.dtype)
        return out if self.bias is None else out + self.bias.to(x.dtype)


def layer_for(tensors: dict[str, Tensor], path: str, linear: nn.Linear) -> nn.Module | None:
    """The back end's layer whose tensors a block's file holds for the linear layer at ``path``, if any."""
    size = (linear.in_features, linear.out_features, linear.bias is not None)
    if f"{path}.nf4" in tensors:
        return Nf4Linear(*size, device="meta")
    if f"{path}.int8" in tensors:
        return Int8Linear(*size, device="meta")
    return None
