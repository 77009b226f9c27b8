"""FwdLLM (Xu 2024): LoRA trained by forward gradients, without a backward pass.

A client perturbs the adapters along random directions v, measures the loss's slope along each with two forward passes
(central difference) or one with forward-mode differentiation, and sends (slope) v; their mean estimates the gradient.
Directions are drawn from named seeds; of several candidates those are kept whose cosine with the last round's estimate
is largest in magnitude. The server asks the cohort for more directions until the estimate's relative variance is below
a threshold, then makes one step of its own optimizer. Unlike the paper's, our clients do not perturb the head: its
exact gradient needs the last states only, no backward pass through the model, and is worth 15 to 20 points here.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assyllm import seeding
from assyllm.baselines.local import Local, Loss, Weights, groups, schedule, weighted_loss
from assyllm.baselines.lora import Lora
from assyllm.baselines.method import HEAD, body
from assyllm.params import FwdLLMTuning
from assyllm.zoo.forward import Packed, pooled


def slopes(
    loss: Loss, weights: Weights, directions: Weights, batch: Packed, items: Tensor, estimator: str, step: float
) -> tuple[Tensor, Tensor]:
    """Slopes of K clients' losses along J directions each, and the losses: both [K, J].

    Args:
        directions: tensors [K, J, ...] named as ``weights``.
        batch: fields [K, B, ...].
        items: item weights [K, B].
        estimator: "central" (two forward passes) or "jvp" (forward-mode, exact).
        step: the central difference's, in multiples of a direction.
    """

    def at(tensors: Weights, part: dict[str, Tensor], used: Tensor) -> Tensor:
        return loss(tensors, type(batch)(**part), used)

    def sloped(direction: Weights, part: dict[str, Tensor], used: Tensor) -> tuple[Tensor, Tensor]:
        pair = torch.func.jvp(lambda tensors: at(tensors, part, used), (weights,), (direction,))
        return pair[1], pair[0]

    def of_clients(function: Callable[..., Any], along: Weights) -> Any:
        per_client = torch.func.vmap(function, in_dims=(0, None, None))
        return torch.func.vmap(per_client)(along, batch.tensors(), items)

    if estimator == "jvp":
        return of_clients(sloped, directions)
    moves = {name: step * tensor for name, tensor in directions.items()}
    both = {name: torch.cat([t + moves[name], t - moves[name]], dim=1) for name, t in weights.items()}
    ahead, behind = of_clients(at, both).chunk(2, dim=1)
    return (ahead - behind) / (2 * step), (ahead + behind) / 2


def combine(estimates: Tensor, shares: Tensor) -> tuple[Tensor, float]:
    """The mean [P] of estimates [K, J, P], clients weighted by ``shares`` [K], and its relative variance.

    Relative: the mean's variance over the mean's squared length. One less it estimates the squared cosine with the true
    gradient, so a threshold on it needs no scale.
    """
    clients, directions, _ = estimates.shape
    mean = torch.tensordot(shares, estimates.mean(1), dims=1)
    number = clients * directions
    if number < 2:
        return mean, 1.0
    spread = ((estimates - mean) ** 2).sum(-1).sum(-1) / directions**2
    variance = float((shares**2 * spread).sum()) * number / (number - 1)
    return mean, min(1.0, variance / max(float(mean @ mean), 1e-30))


class FwdLLM(Lora):
    """LoRA by forward gradients; the head's gradient is exact, as it reads the last states only."""

    tuning: FwdLLMTuning

    def __init__(self, model: nn.Module, tuning: FwdLLMTuning) -> None:
        super().__init__(model, tuning)
        self.tuning = tuning

    def start(self, seed: int = 0) -> Weights:
        """LoRA's; no gradient is known yet."""
        self.last: Tensor | None = None
        self.asked, self.guided = 1, False
        return super().start(seed)

    def progress(self) -> dict[str, Any]:
        """The last estimate, which the next directions are chosen by, and what its round's traffic hangs on."""
        last = None if self.last is None else base64.b64encode(self.last.numpy().tobytes()).decode()
        return {"last": last, "asked": self.asked, "guided": self.guided}

    def resume(self, progress: dict[str, Any]) -> None:
        """Take up :meth:`progress` again."""
        text = progress["last"]
        self.last = None if text is None else torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)
        self.asked, self.guided = progress["asked"], progress["guided"]

    def traffic(self, weights: Weights) -> tuple[int, int]:
        """Up an estimate for every time that the server asked, and the head's gradient.

        Down all weights, and the last estimate where there was one.
        """
        up, down = super().traffic(weights)
        estimate = up - weights[HEAD].numel() * weights[HEAD].element_size()
        return up + (self.asked - 1) * estimate, down + self.guided * estimate

    def _draw(self, size: int, *names: str | int) -> Tensor:
        """``tuning.directions`` directions [J, P] of unit variance a weight, the best of the candidates."""
        kept = self.tuning.directions
        number = kept if self.last is None else kept * self.tuning.candidates
        draws = seeding.rng("direction", *names).standard_normal((number, size), dtype=np.float32)
        candidates = torch.from_numpy(draws)
        if self.last is None:
            return candidates
        cosine = (candidates @ self.last).abs() / candidates.norm(dim=-1)
        return candidates[torch.topk(cosine, kept, sorted=True).indices]

    @torch.no_grad()
    def train(
        self,
        weights: Weights,
        data: Packed,
        clients: Sequence[tuple[int, Sequence[int]]],
        local: Local,
        *names: str | int,
    ) -> tuple[Weights, float]:
        """One gradient estimate over the cohort, and the weights one local step of plain SGD along it.

        Every client uses one minibatch. The loss is that around the server's weights.
        """
        self.guided = self.last is not None
        total = sum(min(len(items), local.batch) for _, items in clients)
        shares = torch.tensor([min(len(items), local.batch) / total for _, items in clients])
        estimates: list[Tensor] = []  # per ask [K, J, P]
        losses = torch.zeros(len(clients))
        adapters = body(weights)
        for ask in range(self.tuning.asks):
            found, losses = self._ask(adapters, weights[HEAD], data, clients, local, ask, *names)
            estimates.append(found)
            mean, variance = combine(torch.cat(estimates, dim=1), shares)
            if variance <= self.tuning.variance:
                break
        self.last, self.asked = mean, len(estimates)
        questions = data.take(torch.from_numpy(np.concatenate(_minibatches(clients, local, *names))))
        gradient = unflatten(mean, adapters) | {HEAD: self._head_gradient(weights, questions)}
        return {name: t - local.learning_rate * gradient[name] for name, t in weights.items()}, float(shares @ losses)

    def step(self, weights: Weights, state: list[Weights], step: int, batch: Packed, local: Local) -> float:
        """What a device does for one ask on its minibatch, and plain SGD along it, in place; the loss around it."""
        whole = replace(local, batch=len(batch))
        moved, loss = self.train(weights, batch, [(0, range(len(batch)))], whole, "step", step)
        for name, tensor in moved.items():
            weights[name].copy_(tensor)
        return loss

    def _head_gradient(self, weights: Weights, batch: Packed) -> Tensor:
        """The head's own gradient [F] on a batch: it needs the last states only, so no backward pass."""
        features = pooled(self.base, body(weights), batch)
        with torch.enable_grad():
            head = weights[HEAD].detach().requires_grad_()
            loss = weighted_loss(features @ head, batch, torch.ones(len(batch), device=head.device))
            return torch.autograd.grad(loss, head)[0]

    def _ask(
        self,
        adapters: Weights,
        head: Tensor,
        data: Packed,
        clients: Sequence[tuple[int, Sequence[int]]],
        local: Local,
        ask: int,
        *names: str | int,
    ) -> tuple[Tensor, Tensor]:
        """Every client's estimates [K, J, P] along directions of its own, and its losses [K]."""

        def at_head(tensors: Weights, part: Packed, used: Tensor) -> Tensor:
            return self.loss(tensors | {HEAD: head}, part, used)

        chosen = _minibatches(clients, local, *names)
        size = sum(tensor.numel() for tensor in adapters.values())
        flat = torch.stack([self._draw(size, *names, client, ask) for client, _ in clients])
        found, losses = torch.zeros(flat.shape[:2]), torch.zeros(len(clients))
        lengths = (data.segments >= 0).sum(-1).amax(-1).numpy()
        evaluated = 2 * flat.shape[1]  # forward passes of one question
        cells = [evaluated * data.ids.shape[1] * int(lengths[index].max()) ** 2 for index in chosen]
        for group in groups([len(index) for index in chosen], [1] * len(chosen), cells):
            rows = max(len(chosen[k]) for k in group)
            index = np.stack([np.resize(chosen[k], rows) for k in group])
            used = torch.stack([(torch.arange(rows) < len(chosen[k])).float() for k in group])
            found[group], values = slopes(
                at_head, adapters, unflatten(flat[group], adapters), data.take(torch.from_numpy(index)), used,
                self.tuning.estimator, self.tuning.step,
            )  # fmt: skip
            losses[group] = values.mean(-1)
        return found[..., None] * flat, losses


def _minibatches(clients: Sequence[tuple[int, Sequence[int]]], local: Local, *names: str | int) -> list[np.ndarray]:
    first = ((items, schedule(len(items), local, *names, client)[0][: local.batch]) for client, items in clients)
    return [np.asarray(items)[chosen] for items, chosen in first]


def unflatten(flat: Tensor, like: Weights) -> Weights:
    """Vectors [..., P] as tensors [..., *shape] shaped as ``like``, by name (a checkpoint keeps no order)."""
    pairs = sorted(like.items())
    parts = flat.split([tensor.numel() for _, tensor in pairs], dim=-1)
    return {n: part.reshape(*flat.shape[:-1], *t.shape) for (n, t), part in zip(pairs, parts, strict=True)}
