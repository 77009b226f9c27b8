"""Frozen models with the closed-form head: ``one_model_head``, ``all_models_head``, two controls.

The strong competitors without any fine-tuning: every client sends the sums of the ridge head over pooled states once (a
forward pass), the server solves and picks the ridge on its development split. As the head of an assembled model reads
all of its blocks, ``one_model_head`` reads all layers of its model. ``all_models_head`` reads the last states of every
model of the zoo, one after the other and each as it is: what the zoo knows without cutting, choosing or joining
anything. ``choices_only`` is the first with the question removed: what the answers alone give away. ``server_head``
asks no client: the head on all layers of all models, fitted to the development questions that every server has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assyllm.adapter.sent import block_features
from assyllm.assembly.head import Head, HeadSums, fit_on_dev, sketched
from assyllm.baselines.local import Local, Weights
from assyllm.baselines.method import HEAD, Cached, Data, Method, OnModel, chunks
from assyllm.params import ClosedForm
from assyllm.tasks.record import SPLITS, Question
from assyllm.zoo.forward import Packed, inputs, pool_states

SUMS = tuple(field.name for field in fields(HeadSums))


class ClosedFormHead(Method):
    """The "weights" are the head's sums over the clients so far, and the head fitted to them."""

    once = True
    loss_unit = "squared error"
    size: int  # F, features that the head reads
    grid: list[float]
    dev: Cached

    def start(self, seed: int = 0) -> Weights:
        """Sums of no questions, and a head of zeros."""
        return dict(zip(SUMS, HeadSums.zeros(self.size).parts(), strict=True)) | {HEAD: torch.zeros(self.size)}

    def train(
        self,
        weights: Weights,
        data: Packed,
        clients: Sequence[tuple[int, Sequence[int]]],
        local: Local,
        *names: str | int,
    ) -> tuple[Weights, float]:
        """The sums with those of the given clients; the last head's mean squared error on their questions."""
        total = {name: tensor.clone() for name, tensor in weights.items()}
        batches = [data.take(torch.as_tensor(np.asarray(items))) for _, items in clients]
        errors = [self.step(total, [], 1, batch, local) for batch in batches]
        return total, float(np.average(errors, weights=[len(batch) for batch in batches]))

    def step(self, weights: Weights, state: list[Weights], step: int, batch: Packed, local: Local) -> float:
        """Add one client's sums, in place; the mean squared error of the last head on its questions."""
        sums = HeadSums.of(batch.cached, batch.choice_mask, batch.answer)  # type: ignore[attr-defined]
        for name, tensor in zip(SUMS, sums.parts(), strict=True):
            weights[name] += tensor
        return sums.loss(Head(weights[HEAD]))

    def after_round(self, weights: Weights, round_: int) -> Weights:
        """The head fitted to the sums so far, its ridge chosen on the development split."""
        sums = HeadSums(*(weights[name] for name in SUMS))
        if not float(sums.n):
            return weights
        head, _, _ = fit_on_dev(sums, self.grid, self.dev.cached, self.dev.choice_mask, self.dev.answer)
        return weights | {HEAD: head.weight}

    def scores(self, weights: Weights, batch: Packed) -> Tensor:
        """Scores [n, C] of every choice."""
        return Head(weights[HEAD])(batch.cached, batch.choice_mask)  # type: ignore[attr-defined]

    def traffic(self, weights: Weights) -> tuple[int, int]:
        """Up: one client's sums. Down: nothing, the model lies on the device."""
        return HeadSums(*(weights[name] for name in SUMS)).bytes, 0


class OneModelHead(ClosedFormHead, OnModel):
    """The head on all layers of one model, or on its last."""

    def __init__(self, model: nn.Module, closed_form: ClosedForm) -> None:
        super().__init__(model)
        self.grid, self.sketch_dims = closed_form.ridge_grid, closed_form.sketch_dims
        config: Any = self.base.config
        below = [int(config.hidden_size)] * (int(config.num_hidden_layers) - 1)
        widths = [*(below if closed_form.scope == "all_layers" else []), self.width]
        self.layers, self.size = len(widths), sum(block_features(width, self.sketch_dims) for width in widths)

    @torch.no_grad()
    def prepare(self, data: Data) -> Data:
        """The data with every question's pooled states [N, C, F]: the model is frozen, so they are computed once."""
        found = {name: self._with_features(getattr(data, name)) for name in SPLITS}
        self.dev = found["dev"]
        return Data(**found, owned=data.owned)

    def _with_features(self, split: Packed) -> Cached:
        none = torch.zeros(0, split.choice_mask.shape[1], self.size)
        parts = [self._features(split.take(index)) for index in chunks(split)]
        return Cached(**split.tensors(), cached=torch.cat([none, *parts]))

    def _features(self, batch: Packed) -> Tensor:
        arguments = inputs(self.base.config, batch, next(self.base.parameters()).dtype)
        found = self.base(**arguments, output_hidden_states=True)
        states = [*found.hidden_states[1:-1], found.last_hidden_state][-self.layers :]
        read = (pool_states(layer, batch) for layer in states)
        return torch.cat([sketched(own, self.sketch_dims, f"layer {i}") for i, own in enumerate(read)], dim=-1)


class AllModelsHead(ClosedFormHead):
    """The head on what several models' :class:`OneModelHead` read, each by its own tokenizer.

    Args:
        read: the same questions as each of them has prepared them.
        grid: ridges to choose from.
    """

    def __init__(self, read: Sequence[Data], grid: list[float]) -> None:
        found = {}
        for name in SPLITS:
            own = [getattr(data, name) for data in read]
            found[name] = replace(own[0], cached=torch.cat([split.cached for split in own], dim=-1))
        self.data = Data(**found, owned=read[0].owned)
        self.dev, self.grid, self.size = found["dev"], grid, found["dev"].cached.shape[-1]


class ServerHead(AllModelsHead):
    """The control without clients: a head fitted to the development split, its ridge the one of most evidence there."""

    def start(self, seed: int = 0) -> Weights:
        """The head; no round of sums follows."""
        sums = HeadSums.of(self.dev.cached, self.dev.choice_mask, self.dev.answer)
        return {HEAD: sums.evidence(self.grid)[1].weight}


class ChoicesOnly(OneModelHead):
    """The control: the same head on the choices alone."""

    def view(self, question: Question) -> Question:
        """The question without context and stem."""
        return replace(question, context="", question="")
