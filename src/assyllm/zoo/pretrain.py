"""One pre-training loop for all families: causal or masked, on the world's sentences or on plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assyllm import seeding
from assyllm.artifacts import ArtifactError
from assyllm.zoo.corpus import TokenRow
from assyllm.zoo.cuda import moved, quick
from assyllm.zoo.device import device_of
from assyllm.zoo.muon import optimizers

MASKED_BESIDE_ANSWER = 0.04  # share of other tokens masked in rows whose answers are masked (always)
MASKED_ELSEWHERE = 0.3  # share of tokens masked in rows without answers
WARMUP = 0.05  # share of the steps over which learning rates rise
DEVICE = "zoo.pretrain.device"  # the key that names it
HOLD = 0.4  # share of the steps before they fall to zero


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is trained; ``batch`` counts rows of median length, longer rows make smaller batches."""

    causal: bool
    steps: int
    batch: int
    matrix_learning_rate: float
    other_learning_rate: float
    answer_weight: float = 1.0
    device: str = "cpu"
    bf16: bool = False


@dataclass(frozen=True, slots=True)
class Special:
    """Token ids that the loop needs: padding, the mask (None for causal models), and all special ones."""

    pad: int
    mask: int | None
    all: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: object) -> Special:
        """From a transformers tokenizer."""
        pad = tokenizer.pad_token_id  # type: ignore[attr-defined]
        mask = getattr(tokenizer, "mask_token_id", None)
        return cls(0 if pad is None else pad, mask, tuple(sorted(tokenizer.all_special_ids)))  # type: ignore[attr-defined]


def pretrain(
    model: nn.Module,
    rows: Sequence[TokenRow],
    special: Special,
    recipe: Recipe,
    *names: str | int,
    report: Callable[[int, Tensor], None] | None = None,
) -> None:
    """Train a transformers language model in place; it ends in evaluation mode on the CPU.

    Args:
        rows: what is read, cycled in a new order as often as needed.
        names: name the order of rows and the masks drawn.
        report: called after every step with (step, loss []); reading the loss waits for the device.

    Raises:
        ArtifactError: the loss is not finite, or the device is not there.
    """
    device = device_of(recipe.device, DEVICE)
    draw = seeding.rng("pretrain", *names)
    model.to(device).train()
    steppers = optimizers(model, recipe.matrix_learning_rate, recipe.other_learning_rate)
    peaks = [group["lr"] for stepper in steppers for group in stepper.param_groups]
    feed = batches(rows, recipe.batch, draw)
    with _quick(model, device) as objective:
        for step in range(recipe.steps):
            factor = schedule(step, recipe.steps)
            groups = [group for stepper in steppers for group in stepper.param_groups]
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = peak * factor
            value = loss(model, next(feed), special, recipe, draw, objective)
            value.backward()
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad(set_to_none=True)
            if report:
                report(step + 1, value.detach())
    if recipe.steps and not bool(torch.isfinite(value.detach())):
        raise ArtifactError("zoo.pretrain: the loss is not finite; lower the learning rates")
    model.to("cpu").eval()


@torch.no_grad()
def held_out_loss(
    model: nn.Module, rows: Sequence[TokenRow], special: Special, recipe: Recipe, *names: str | int
) -> float:
    """Mean loss (nats a predicted token, answers weighted as in training) over ``rows``, each read once."""
    model.to(device_of(recipe.device, DEVICE))
    draw = seeding.rng("held_out", *names)
    total = weight = 0.0
    for chosen in _dealt(rows, recipe.batch, draw):
        total += float(loss(model, chosen, special, recipe, draw)) * len(chosen)
        weight += len(chosen)
    model.to("cpu")
    return total / max(weight, 1.0)


def schedule(step: int, steps: int) -> float:
    """Learning rate factor: up over the first 5 %, held to 40 %, then linearly down to zero."""
    return min(1.0, (step + 1) / max(1.0, WARMUP * steps), (steps - step) / ((1 - HOLD) * steps))


def batches(rows: Sequence[TokenRow], batch: int, draw: np.random.Generator) -> Iterator[list[TokenRow]]:
    """Batches without end: every pass deals all rows anew."""
    if not rows:
        raise ArtifactError("zoo.pretrain: no rows to train on, since those that there are were held out; more of them")
    while True:
        yield from _dealt(rows, batch, draw)


def _dealt(rows: Sequence[TokenRow], batch: int, draw: np.random.Generator) -> Iterator[list[TokenRow]]:
    """One pass. Rows share a batch if their lengths round to one power of two, so that little is padding but
    every batch still mixes all kinds of sentences (batches of equal length are of one kind, and train badly)."""
    lengths = np.array([len(row.ids) for row in rows])
    budget = batch * float(np.median(lengths))
    rounded = np.ceil(np.log2(lengths)).astype(int)
    dealt = []
    for size in np.unique(rounded):
        members = draw.permutation(np.flatnonzero(rounded == size))
        count = max(1, int(budget // lengths[members].mean()))
        dealt += [members[start : start + count] for start in range(0, len(members), count)]
    for index in draw.permutation(len(dealt)):
        yield [rows[i] for i in dealt[index]]


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor, causal: bool) -> Tensor:
    """Weighted mean over tokens [N, T] of the cross-entropy of logits [N, T, V]: next tokens if ``causal``."""
    if causal:
        logits, target, weight = logits[:, :-1], target[:, 1:], weight[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), reduction="none")
    return (losses * weight.flatten()).sum() / weight.sum()


def loss(
    model: nn.Module,
    rows: Sequence[TokenRow],
    special: Special,
    recipe: Recipe,
    draw: np.random.Generator,
    objective: Callable[..., Tensor] = cross_entropy,
) -> Tensor:
    """Weighted cross-entropy of one batch: next tokens if causal, else masked ones (answers always masked)."""
    ids, real, answer = _padded(rows, special.pad)
    weights = np.where(answer, recipe.answer_weight, 1.0)
    if recipe.causal:
        shown, weights = ids, weights * real
    else:
        share = np.where(answer.any(1, keepdims=True), MASKED_BESIDE_ANSWER, MASKED_ELSEWHERE)
        masked = answer | ((draw.random(ids.shape) < share) & ~np.isin(ids, special.all) & real)
        masked[:, 1] |= ~masked.any()  # a batch that masks nothing has no loss
        shown, weights = np.where(masked, special.mask or 0, ids), weights * masked
    device = next(model.parameters()).device
    target, weight = moved(ids, device), moved(weights, device).float()
    mixed = torch.autocast(device.type, dtype=torch.bfloat16) if recipe.bf16 else nullcontext()
    with mixed:
        mask = None if device.type == "cuda" and real.all() else moved(real, device).long()
        logits = model(input_ids=moved(shown, device), attention_mask=mask).logits
    return objective(logits, target, weight, recipe.causal)


def _padded(rows: Sequence[TokenRow], pad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = (len(rows), max(len(row.ids) for row in rows))
    ids = np.full(shape, pad, dtype=np.int64)
    real = np.zeros(shape, dtype=bool)
    answer = np.zeros(shape, dtype=bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)], real[i, : len(row.ids)] = row.ids, True
        answer[i, : len(row.ids)] = row.answer
    return ids, real, answer


def _quick(model: nn.Module, device: torch.device) -> AbstractContextManager[Callable[..., Tensor]]:
    return quick(model, cross_entropy) if device.type == "cuda" else nullcontext(cross_entropy)
