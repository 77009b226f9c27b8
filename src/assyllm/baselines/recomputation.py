"""Full fine-tuning with recomputed activations: ``recomputation``.

Checkpointing alone (:meth:`Recomputation.checkpointed_loss`) keeps one state a layer, but all weights and gradients: 27
GiB of Llama-7B. So that small devices can take part, :meth:`Recomputation.step` streams weights and optimizer state
through memory one layer at a time as well (:mod:`assyllm.baselines.stream`). Either gives full fine-tuning's gradients.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor, nn

from assyllm.baselines.full import FullFineTuning
from assyllm.baselines.layered import Layered
from assyllm.baselines.local import Local, Weights, weighted_loss
from assyllm.baselines.method import HEAD
from assyllm.baselines.stream import Disk, streamed_step
from assyllm.params import Tuning
from assyllm.zoo.forward import Packed


class Recomputation(FullFineTuning):
    """Full fine-tuning; a device's own step is streamed, the simulator runs full fine-tuning's."""

    swap = False  # whether saved tensors go to disk instead of being computed again

    def __init__(self, model: nn.Module, tuning: Tuning | None = None) -> None:
        super().__init__(model)
        self.layered = Layered(self.base)

    def checkpointed_loss(self, weights: Weights, batch: Packed, item_weights: Tensor) -> Tensor:
        """The loss with torch's checkpointing alone (non-reentrant, one checkpoint a layer)."""
        return weighted_loss(self.layered.checkpointed(weights, batch) @ weights[HEAD], batch, item_weights)

    def step(self, weights: Weights, state: list[Weights], step: int, batch: Packed, local: Local) -> float:
        """One step of one client, in place; a device would leave weights and state on its disk."""
        with tempfile.TemporaryDirectory() as folder:
            disk = Disk(Path(folder))
            kinds = {"weight": weights, **{str(i): moments for i, moments in enumerate(state)}}
            for kind, tensors in kinds.items():
                for name, tensor in tensors.items():
                    disk.write(f"{kind}/{name}", tensor)
            loss = streamed_step(self.layered, disk, list(weights), step, batch, local, len(state), self.swap)
            for kind, tensors in kinds.items():
                for name, tensor in tensors.items():
                    tensor.copy_(disk.read(f"{kind}/{name}"))
        return loss
