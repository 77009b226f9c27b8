"""The few functions that every fine-tuning baseline has; the round loop knows a method by these only.

A method keeps what is frozen (and shared by all clients) to itself; what is trained travels as one flat
dictionary of named tensors, so that averaging, stacking over clients, traffic and checkpoints are the same
for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assyllm.baselines.local import Local, Weights, train_cohort, weighted_loss
from assyllm.zoo.forward import Packed, mask_padding

CHUNK_TOKENS = 4096  # tokens of one forward pass in evaluation


class Method:
    """A fine-tuning method. Subclasses give :meth:`start` and :meth:`scores`; the rest has defaults."""

    causal = True  # whether the model reads packed questions (zoo.forward.pack)

    def start(self) -> Weights:
        """The trainable tensors before round one."""
        raise NotImplementedError

    def scores(self, weights: Weights, batch: Packed) -> Tensor:
        """Scores [n, C] of n questions' choices (padding choices not masked); must work under vmap."""
        raise NotImplementedError

    def loss(self, weights: Weights, batch: Packed, item_weights: Tensor) -> Tensor:
        """Mean cross-entropy of n questions under ``item_weights`` [n]."""
        return weighted_loss(self.scores(weights, batch), batch, item_weights)

    def train(
        self,
        weights: Weights,
        data: Packed,
        clients: Sequence[tuple[int, Sequence[int]]],
        local: Local,
        *names: str | int,
    ) -> tuple[Weights, np.ndarray]:
        """A round of the given clients: averaged new weights, mean local losses [clients]."""
        return train_cohort(self.loss, weights, data, clients, local, *names)

    def traffic(self, weights: Weights) -> tuple[int, int]:
        """Bytes (up, down) of one client in one round; by default all trainable tensors both ways."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        return size, size

    def after_round(self, weights: Weights, round_: int) -> Weights:
        """The server's own step after averaging (growing adapters, for example); default: nothing."""
        return weights

    def progress(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the weights, as JSON values."""
        return {}

    def resume(self, progress: dict[str, Any]) -> None:
        """Take up :meth:`progress` again."""


@torch.no_grad()
def choose(method: Method, weights: Weights, data: Packed) -> np.ndarray:
    """The choice [N] of highest score for every question; questions run in order of length."""
    lengths = (data.segments >= 0).sum(-1).amax(-1)
    order = torch.argsort(lengths, stable=True)
    chosen = np.zeros(len(data), dtype=np.int64)
    rows = data.ids.shape[1]
    start = 0
    while start < len(order):
        size = max(1, CHUNK_TOKENS // (rows * max(1, int(lengths[order[start]]))))
        index = order[start : start + size]
        batch = data.take(index)
        scores = mask_padding(method.scores(weights, batch), batch.choice_mask)
        chosen[index.numpy()] = scores.argmax(-1).numpy()
        start += size
    return chosen
