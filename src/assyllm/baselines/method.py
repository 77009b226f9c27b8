"""The few functions that every fine-tuning baseline has; the round loop knows a method by these only.

A method keeps what is frozen (and shared by all clients) to itself; what is trained travels as one flat
dictionary of named tensors, so that averaging, stacking over clients, traffic and checkpoints are the same
for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assyllm.baselines.local import CHUNK_TOKENS, Local, Weights, by_length, local_step, train_cohort, weighted_loss
from assyllm.tasks.record import Question
from assyllm.zoo.encoding import features
from assyllm.zoo.forward import Packed, is_causal, mask_padding, pooled

HEAD = "head.weight"


@dataclass(frozen=True, slots=True)
class Cached(Packed):
    """Questions with something known of each: a tensor [N, ...] that goes where they go."""

    cached: Tensor


@dataclass(frozen=True, slots=True)
class Data:
    """A task's encoded splits and who holds which training item."""

    train: Packed
    dev: Packed
    test: Packed
    owned: Sequence[Sequence[int]]  # per client, indices into train


class Method:
    """A fine-tuning method. Subclasses give :meth:`start` and :meth:`scores`; the rest has defaults."""

    causal = True  # whether the model reads packed questions (zoo.forward.pack)
    once = False  # whether a client may take part only once (its sums must not count twice)
    loss_unit = "nats"

    def view(self, question: Question) -> Question:
        """What the method sees of a question; default: all of it."""
        return question

    def prepare(self, data: Data) -> Data:
        """The data with what the method computes once before round one (cached activations); default: as it is."""
        return data

    def start(self, seed: int = 0) -> Weights:
        """The trainable tensors before round one; what is drawn hangs on ``seed``."""
        raise NotImplementedError

    def scores(self, weights: Weights, batch: Packed) -> Tensor:
        """Scores [n, C] of n questions' choices (padding choices not masked); must work under vmap."""
        raise NotImplementedError

    def loss(self, weights: Weights, batch: Packed, item_weights: Tensor) -> Tensor:
        """Mean cross-entropy of n questions under ``item_weights`` [n]."""
        return weighted_loss(self.scores(weights, batch), batch, item_weights)

    def step(self, weights: Weights, state: list[Weights], step: int, batch: Packed, local: Local) -> float:
        """One step of one client, in place, as a device runs it (see :func:`local_step`); the loss before it."""
        return local_step(self.loss, weights, state, step, batch, local)

    def train(
        self,
        weights: Weights,
        data: Packed,
        clients: Sequence[tuple[int, Sequence[int]]],
        local: Local,
        *names: str | int,
    ) -> tuple[Weights, float]:
        """A round of the given clients: their new weights and their losses, averaged by items."""
        return train_cohort(self.loss, weights, data, clients, local, *names)

    def traffic(self, weights: Weights) -> tuple[int, int]:
        """Bytes (up, down) of one client in the round just trained; by default all trainable tensors both ways."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        return size, size

    def after_round(self, weights: Weights, round_: int) -> Weights:
        """The server's own step after averaging (growing adapters, for example); default: nothing."""
        return weights

    def progress(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the weights, as JSON values; :meth:`start` begins anew."""
        return {}

    def resume(self, progress: dict[str, Any]) -> None:
        """Take up :meth:`progress` again."""


class OnModel(Method):
    """A method on one transformers model (its language head aside) with the common head.

    The head is a linear score on the pooled state of every (question, choice), softmax over choices. The model is put
    into evaluation mode (no dropout) and must use eager attention.
    """

    def __init__(self, model: nn.Module) -> None:
        self.base = getattr(model, "base_model", model)
        self.base.eval()
        self.causal = is_causal(self.base)
        config: Any = self.base.config
        self.width = int(getattr(config, "word_embed_proj_dim", config.hidden_size))

    def scores(self, weights: Weights, batch: Packed) -> Tensor:
        """Scores [n, C] of every choice by the model with ``weights`` as its own; padding choices are not masked."""
        return pooled(self.base, body(weights), batch) @ weights[HEAD]

    def head(self) -> Weights:
        """A head of zeros under the name :data:`HEAD`: every choice scores alike."""
        return {HEAD: torch.zeros(features(self.width), dtype=next(self.base.parameters()).dtype)}


def body(weights: Weights) -> Weights:
    """All but the head."""
    return {name: tensor for name, tensor in weights.items() if name != HEAD}


def chunks(data: Packed) -> Iterator[Tensor]:
    """Indices of all questions, in order, about :data:`CHUNK_TOKENS` tokens at a time."""
    size = max(1, CHUNK_TOKENS // (data.ids.shape[1] * data.ids.shape[2]))
    yield from (index for index in torch.arange(len(data)).split(size) if len(index))


@torch.no_grad()
def choose(method: Method, weights: Weights, data: Packed) -> np.ndarray:
    """The choice [N] of highest score for every question; questions run in order of length."""
    chosen = np.zeros(len(data), dtype=np.int64)
    for index in by_length(data, torch.arange(len(data))):
        batch = data.take(index)
        scores = mask_padding(method.scores(weights, batch), batch.choice_mask)
        chosen[index.numpy()] = scores.argmax(-1).numpy()
    return chosen
