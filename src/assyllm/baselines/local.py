"""What one client does in a round, for every gradient-based method: local epochs of minibatch steps.

:func:`local_step` is one step of one client: what a device runs and what the cost model measures. The
simulator runs the same step for a whole cohort at once: the clients' weights are stacked, ``torch.func.vmap``
maps the loss over them, and since no client's loss depends on another's weights the gradient of the sum of
losses is every client's own gradient. Clients have unlike numbers of items: short batches are padded with
items of weight zero, missing steps are switched off, so that the result equals the plain loop over clients.
Stateless SGD makes one step an epoch, along the gradient over all of a client's items (a device adds it up over
minibatches): after one such step the clients' average is one step along the gradient over all their items (FedSGD,
McMahan 2017), and :func:`train_cohort` computes that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from assyllm import seeding
from assyllm.zoo.forward import Packed, mask_padding

Weights = dict[str, Tensor]
Loss = Callable[[Weights, Packed, Tensor], Tensor]  # weights, n questions, item weights [n] -> scalar
Step = Callable[[Weights, list[Weights], int, Packed, "Local"], float]  # local_step without its loss

GROUP_OVERHEAD_ROWS = 24  # cost of one more vectorised call, in questions of padding it may save
GROUP_CELLS = 2_000_000  # attention cells (rows x tokens x tokens) of one vectorised call: bounds its memory
CHUNK_TOKENS = 4096  # tokens of one forward pass over questions of like length


@dataclass(frozen=True, slots=True)
class Local:
    """Settings of local training.

    ``optimizer`` is "sgd" (no state), "momentum" (SGD with 0.9) or "adamw" (no weight decay).
    """

    learning_rate: float
    local_epochs: int
    batch: int
    optimizer: str = "sgd"
    head_factor: float = 1.0  # the head's learning rate in multiples of learning_rate


def weighted_loss(scores: Tensor, batch: Packed, item_weights: Tensor) -> Tensor:
    """Cross-entropy over choices, averaged by ``item_weights`` [n] (0 for padding items; not all 0).

    Args:
        scores: [n, C]
    """
    log_probabilities = torch.log_softmax(mask_padding(scores, batch.choice_mask), dim=-1)
    losses = -log_probabilities.gather(-1, batch.answer[..., None])[..., 0]
    return (losses * item_weights).sum(-1) / item_weights.sum(-1).clamp(min=1e-9)


def start_state(weights: Weights, optimizer: str) -> list[Weights]:
    """Fresh optimizer moments: none for plain SGD, one set for SGD with momentum, two for AdamW."""
    sets = {"sgd": 0, "momentum": 1, "adamw": 2}[optimizer]
    return [{name: torch.zeros_like(tensor) for name, tensor in weights.items()} for _ in range(sets)]


@torch.no_grad()
def update(
    weights: Weights,
    gradients: Weights,
    state: list[Weights],
    step: int,
    active: Tensor | None,
    local: Local,
) -> None:
    """One optimizer step in place, for one client's tensors or for stacked ones.

    Args:
        step: 1 for the first step (AdamW's bias correction).
        active: None, or [clients] 0/1: clients whose tensors stay as they are where 0.
    """
    for name, weight in weights.items():
        rate = local.learning_rate * (local.head_factor if name.startswith("head.") else 1.0)
        gradient = gradients[name]
        if local.optimizer == "adamw":
            first, second = state[0][name], state[1][name]
            first.mul_(0.9).add_(gradient, alpha=0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            correction = (1 - 0.999**step) ** 0.5
            rate *= correction / (1 - 0.9**step)
            scale = second.sqrt().add_(1e-8 * correction)
            if active is None:
                weight.addcdiv_(first, scale, value=-rate)
                continue
            change = first / scale
        else:
            change = state[0][name].mul_(0.9).add_(gradient) if state else gradient
        if active is not None:
            change = change * active.reshape(-1, *[1] * (weight.dim() - 1))
        weight.sub_(change, alpha=rate)


def local_step(loss: Loss, weights: Weights, state: list[Weights], step: int, batch: Packed, local: Local) -> float:
    """One step of one client, in place; returns the loss before it.

    Args:
        weights: trainable tensors.
        batch: the minibatch, n questions.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
    value = loss(leaves, batch, torch.ones(len(batch), device=batch.ids.device))
    gradients = torch.autograd.grad(value, list(leaves.values()))
    update(weights, dict(zip(leaves, gradients, strict=True)), state, step, None, local)
    return float(value.detach())


def cohort_step(
    loss: Loss,
    weights: Weights,
    state: list[Weights],
    step: int,
    batch: Packed,
    item_weights: Tensor,
    local: Local,
) -> Tensor:
    """:func:`local_step` of K clients at once, in place; returns their losses [K].

    Args:
        weights: tensors stacked over clients, [K, ...].
        batch: K minibatches of B questions; every field has leading dimensions [K, B].
        item_weights: [K, B]; a row of zeros leaves that client as it is.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}

    def one(client: Weights, part: dict[str, Tensor], items: Tensor) -> Tensor:
        return loss(client, type(batch)(**part), items)

    values = torch.func.vmap(one)(leaves, batch.tensors(), item_weights)
    gradients = torch.autograd.grad(values.sum(), list(leaves.values()))
    active = item_weights.sum(-1) > 0
    masked = None if bool(active.all()) else active.to(values.dtype)
    update(weights, dict(zip(leaves, gradients, strict=True)), state, step, masked, local)
    return values.detach() * active


def schedule(items: int, local: Local, *names: str | int) -> list[np.ndarray]:
    """Index arrays of the items of a client's steps: reshuffled each epoch, the last one may be short.

    A step takes a minibatch, or with "sgd" all items: its rate is made for the server's Adam, which takes any scale out
    of a mean gradient, and would throw the weights far away in several steps.
    """
    batches, size = [], items if local.optimizer == "sgd" else local.batch
    for epoch in range(local.local_epochs):
        order = seeding.rng("batches", *names, epoch).permutation(items)
        batches += [order[start : start + size] for start in range(0, items, size)]
    return batches


def train_client(
    step: Step, weights: Weights, data: Packed, items: Sequence[int], local: Local, *names: str | int
) -> tuple[Weights, float]:
    """A client's whole round, step by step: its new weights and its mean loss (what a device runs)."""
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    state = start_state(weights, local.optimizer)
    losses = []
    for number, chosen in enumerate(schedule(len(items), local, *names), start=1):
        batch = data.take(torch.as_tensor(np.asarray(items)[chosen]))
        losses.append(step(weights, state, number, batch, local))
    return weights, float(np.mean(losses))


def train_cohort(
    loss: Loss,
    weights: Weights,
    data: Packed,
    clients: Sequence[tuple[int, Sequence[int]]],
    local: Local,
    *names: str | int,
) -> tuple[Weights, float]:
    """A round of several clients, vectorised: FedAvg's sum of their new weights, and their mean loss.

    Args:
        weights: the server's trainable tensors.
        data: all training questions of the task.
        clients: (client number, indices of its items in ``data``), at least one item each.
        names: of the round, for the order of items (the client's number is appended).

    Returns:
        The average of the clients' weights and that of their losses, weighted by items (FedAvg).
    """
    plans = [schedule(len(items), local, *names, client) for client, items in clients]
    if local.optimizer == "sgd" and all(len(plan) == 1 for plan in plans):
        return pooled_step(loss, weights, data, np.concatenate([items for _, items in clients]), local)
    total = sum(len(items) for _, items in clients)
    average = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    losses = np.zeros(len(clients))
    lengths = (data.segments >= 0).sum(-1).amax(-1).numpy()
    cells = [data.ids.shape[1] * int(lengths[list(items)].max()) ** 2 for _, items in clients]
    sizes = [max(len(batch) for batch in plan) for plan in plans]
    for group in groups(sizes, [len(plan) for plan in plans], cells):
        batch_size = max(len(b) for k in group for b in plans[k])
        steps = max(len(plans[k]) for k in group)
        index = np.zeros((steps, len(group), batch_size), dtype=np.int64)
        item_weights = np.zeros((steps, len(group), batch_size), dtype=np.float32)
        for row, k in enumerate(group):
            index[:, row] = clients[k][1][0]
            for step, chosen in enumerate(plans[k]):
                index[step, row, : len(chosen)] = np.asarray(clients[k][1])[chosen]
                item_weights[step, row, : len(chosen)] = 1
        stacked = {n: t[None].repeat(len(group), *[1] * t.dim()) for n, t in weights.items()}
        state = start_state(stacked, local.optimizer)
        sums = torch.zeros(len(group))
        for step in range(steps):
            batch = data.take(torch.from_numpy(index[step]))
            used = torch.from_numpy(item_weights[step])
            sums += cohort_step(loss, stacked, state, step + 1, batch, used, local)
        share = torch.tensor([len(clients[k][1]) / total for k in group], dtype=torch.float64)
        for name, tensor in stacked.items():
            average[name] += torch.tensordot(share.to(tensor.dtype), tensor, dims=1)
        losses[group] = sums.numpy() / [len(plans[k]) for k in group]
    return average, float(np.average(losses, weights=[len(items) for _, items in clients]))


def pooled_step(loss: Loss, weights: Weights, data: Packed, items: np.ndarray, local: Local) -> tuple[Weights, float]:
    """The weights one step of stateless SGD along the mean gradient over ``items``, and the mean loss before it."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
    value, gradients = 0.0, {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for index in by_length(data, torch.from_numpy(items)):
        part = loss(leaves, data.take(index), torch.ones(len(index))) * (len(index) / len(items))
        for total, gradient in zip(gradients.values(), torch.autograd.grad(part, list(leaves.values())), strict=True):
            total += gradient
        value += float(part.detach())
    moved = {name: tensor.clone() for name, tensor in weights.items()}
    update(moved, gradients, [], 1, None, local)
    return moved, value


def by_length(data: Packed, items: Tensor) -> Iterator[Tensor]:
    """Indices ``items`` [n] of questions in order of length, about :data:`CHUNK_TOKENS` tokens at a time."""
    lengths = (data.segments[items] >= 0).sum(-1).amax(-1)
    order, rows, start = torch.argsort(lengths, stable=True), data.ids.shape[1], 0
    while start < len(order):
        size = max(1, CHUNK_TOKENS // (rows * max(1, int(lengths[order[start]]))))
        yield items[order[start : start + size]]
        start += size


def groups(batch_sizes: Sequence[int], steps: Sequence[int], cells: Sequence[int]) -> list[list[int]]:
    """Clients of one vectorised call: neighbours in size, cut where padding costs more than another call.

    A group of several clients stays below :data:`GROUP_CELLS` attention cells (``cells``: of one question).
    """
    order = sorted(range(len(steps)), key=lambda k: (steps[k], batch_sizes[k], k))
    best = [0.0] + [float("inf")] * len(order)
    cut = [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        longest = steps[order[end - 1]]
        for start in range(end):
            group = order[start:end]
            rows = len(group) * max(batch_sizes[k] for k in group)
            if len(group) > 1 and rows * max(cells[k] for k in group) > GROUP_CELLS:
                continue
            cost = best[start] + longest * (GROUP_OVERHEAD_ROWS + rows)
            if cost < best[end]:
                best[end], cut[end] = cost, start
    found, end = [], len(order)
    while end:
        found.append(sorted(order[cut[end] : end]))
        end = cut[end]
    return found[::-1]
