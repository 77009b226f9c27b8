"""QLoRA (Dettmers 2023): LoRA over a base in nf4, by bitsandbytes.

A device keeps bitsandbytes' 4-bit layers and dequantises each as it is used. They do not vectorise over clients, but
they are frozen: the simulator therefore runs on the very weights that they dequantise to, once.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from assyllm.artifacts import ArtifactError
from assyllm.baselines.local import Local, Weights, local_step, weighted_loss
from assyllm.baselines.lora import Lora, with_adapters
from assyllm.baselines.method import HEAD, OnModel, body
from assyllm.params import LoraTuning
from assyllm.zoo.forward import Packed, pooled


def four_bit(base: nn.Module) -> nn.Module:
    """``base`` with its linear layers replaced by bitsandbytes' (nf4, double quantisation), in this very module."""
    import bitsandbytes

    for name, part in list(base.named_modules()):
        if not isinstance(part, nn.Linear):
            continue
        layer = bitsandbytes.nn.Linear4bit(
            part.in_features,
            part.out_features,
            part.bias is not None,
            compute_dtype=part.weight.dtype,
            quant_type="nf4",
        )
        # On CPUs with avx512_bf16 an evaluation would repack the weights in place, and no gradient would pass them.
        layer.support_avx512bf16_for_cpu = False
        layer.load_state_dict(part.state_dict())
        base.set_submodule(name, layer.to(part.weight.device))  # moving is what quantises
    base.is_loaded_in_4bit = True  # type: ignore[assignment]  # peft then puts its 4-bit layers in place
    return base


@torch.no_grad()
def decoded(layer: Any) -> Tensor:
    """The weights [out, in] of a 4-bit layer.

    They are decoded as one row: bitsandbytes' kernel for CPUs is wrong on some matrices whose rows do not end with a
    block of 64 weights (seen in 0.50.2 with avx512 at rows of 32, 48, 96, 224, 288).
    """
    import bitsandbytes

    state = copy.copy(layer.weight.quant_state)
    shape, state.shape = state.shape, torch.Size([1, state.shape.numel()])
    return bitsandbytes.functional.dequantize_4bit(layer.weight.data, state).reshape(shape)


@torch.no_grad()
def dequantised(base: nn.Module, like: nn.Module) -> nn.Module:
    """A copy of ``like`` whose linear layers hold the weights of the 4-bit layers of ``base``."""
    plain = copy.deepcopy(like)
    for name, part in plain.named_modules():
        if isinstance(part, nn.Linear):
            part.weight.copy_(decoded(base.get_submodule(name)))
    return plain


def check_kernel(base: nn.Module) -> None:
    """Raise :class:`ArtifactError` if bitsandbytes miscounts in a 4-bit layer of ``base`` (see :func:`decoded`)."""
    import bitsandbytes

    for name, part in base.named_modules():
        if isinstance(part, bitsandbytes.nn.Linear4bit):
            weight: Any = part.weight
            used = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            if not torch.allclose(used, decoded(part), rtol=1e-3, atol=1e-6):
                raise ArtifactError(f"{name}: bitsandbytes decodes rows of {part.in_features} weights wrongly here")


class QLora(Lora):
    """LoRA on the 4-bit base; :meth:`step` is the device's, on bitsandbytes' own layers."""

    def __init__(self, model: nn.Module, tuning: LoraTuning) -> None:
        OnModel.__init__(self, model)
        self.quantised = four_bit(copy.deepcopy(self.base))
        self.base = with_adapters(dequantised(self.quantised, self.base), tuning)
        self.tuning = tuning

    @cached_property
    def device(self) -> nn.Module:
        """The model as a device holds it: peft's adapters over bitsandbytes' layers.

        Raises:
            ArtifactError: bitsandbytes cannot compute with a layer's shape on this CPU.
        """
        check_kernel(self.quantised)
        return with_adapters(self.quantised, self.tuning)

    def device_loss(self, weights: Weights, batch: Packed, item_weights: Tensor) -> Tensor:
        """The loss as a device computes it: peft's adapters over bitsandbytes' layers (does not vectorise)."""
        return weighted_loss(pooled(self.device, body(weights), batch) @ weights[HEAD], batch, item_weights)

    def step(self, weights: Weights, state: list[Weights], step: int, batch: Packed, local: Local) -> float:
        """One step of one client on the 4-bit layers."""
        return local_step(self.device_loss, weights, state, step, batch, local)
