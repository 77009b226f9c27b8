"""Full fine-tuning with activations, weights and optimizer state swapped to disk: ``swapping``.

:meth:`Swapping.swapped_loss` sends autograd's saved tensors to disk and nothing else; :meth:`Swapping.step` streams the
weights and the optimizer state too. Nothing is computed again, so gradients are full fine-tuning's bit for bit.
"""

from __future__ import annotations

from torch import Tensor

from assyllm.baselines.local import Weights
from assyllm.baselines.recomputation import Recomputation
from assyllm.baselines.stream import Disk, Swapped
from assyllm.zoo.forward import Packed


class Swapping(Recomputation):
    """As recomputation, but what the backward pass needs comes back from disk."""

    swap = True

    def swapped_loss(self, weights: Weights, batch: Packed, item_weights: Tensor, disk: Disk) -> Tensor:
        """The loss with the activations on ``disk`` until the backward pass asks for them."""
        with Swapped(disk, weights).hooks():
            return self.loss(weights, batch, item_weights)
