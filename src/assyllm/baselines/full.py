"""Full fine-tuning of one model with the common head: ``ft_oracle`` (every client) and ``ft_practical``.

The two differ only in who takes part: the oracle ignores memory, the practical run takes the clients whose
device holds full fine-tuning (paper section 2.2).
"""

from __future__ import annotations

from torch import nn

from assyllm.baselines.local import Weights
from assyllm.baselines.method import OnModel
from assyllm.params import Tuning


class FullFineTuning(OnModel):
    """All weights of a transformers model (without its language head) and the scoring head, trained."""

    def __init__(self, model: nn.Module, tuning: Tuning | None = None) -> None:
        super().__init__(model)

    def start(self, seed: int = 0) -> Weights:
        """The trainable tensors before round one: the pre-trained weights, and a head of zeros."""
        return {name: p.detach().clone() for name, p in self.base.named_parameters()} | self.head()
