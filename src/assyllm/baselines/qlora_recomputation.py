"""QLoRA with recomputed activations: it fits 8 GB, so more clients take part than in ``qlora``. A strong competitor."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from assyllm.baselines.layered import Layered
from assyllm.baselines.local import Weights, weighted_loss
from assyllm.baselines.method import HEAD, body
from assyllm.baselines.qlora import QLora
from assyllm.zoo.forward import Packed


class QLoraRecomputation(QLora):
    """QLoRA whose device step keeps one state a layer (torch's non-reentrant checkpointing)."""

    @cached_property
    def layered(self) -> Layered:
        """The device's model, layer by layer."""
        return Layered(self.device)

    def device_loss(self, weights: Weights, batch: Packed, item_weights: Tensor) -> Tensor:
        """The loss as a device computes it; the same gradients as QLoRA's."""
        return weighted_loss(self.layered.checkpointed(body(weights), batch) @ weights[HEAD], batch, item_weights)
