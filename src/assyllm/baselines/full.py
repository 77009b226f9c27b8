"""Full fine-tuning of one model with the common head: ``ft_oracle`` (every client) and ``ft_practical``.

The two differ only in who takes part: the oracle ignores memory, the practical run takes the clients whose
device holds full fine-tuning (paper section 2.2). The head is a linear score on the pooled state of every
(question, choice), softmax over choices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from assyllm.baselines.local import Weights
from assyllm.baselines.method import Method
from assyllm.zoo.encoding import features
from assyllm.zoo.forward import Packed, is_causal, pooled

HEAD = "head.weight"


class FullFineTuning(Method):
    """All weights of a transformers model (without its language head) and the scoring head, trained.

    The model is put into evaluation mode (no dropout) and must use eager attention.
    """

    def __init__(self, model: nn.Module) -> None:
        self.base = getattr(model, "base_model", model)
        self.base.eval()
        self.causal = is_causal(self.base)
        config: Any = self.base.config
        self.width = int(getattr(config, "word_embed_proj_dim", config.hidden_size))

    def start(self) -> Weights:
        """The trainable tensors before round one: the pre-trained weights, and a head of zeros."""
        weights = {name: p.detach().clone() for name, p in self.base.named_parameters()}
        weights[HEAD] = torch.zeros(features(self.width), dtype=next(self.base.parameters()).dtype)
        return weights

    def scores(self, weights: Weights, batch: Packed) -> Tensor:
        """Scores [n, C] of every choice; padding choices are not masked."""
        body = {name: tensor for name, tensor in weights.items() if name != HEAD}
        return pooled(self.base, body, batch) @ weights[HEAD]
