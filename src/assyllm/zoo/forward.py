"""Whole models on encoded questions: one forward pass, the same inputs for all four families.

Masks and positions are made here rather than by the model, because (1) they then hold no data-dependent
branch and vectorise over clients, and (2) a causal model can read a question's stem once and all its choices
after it ("packed": each choice sees the stem and itself). Packing gives the same states as one row per
choice, for 2-3 times less work on short questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assyllm.zoo.architecture import ARCHITECTURES
from assyllm.zoo.encoding import Encoded, combine

ENCODERS = tuple(name for name, known in ARCHITECTURES.items() if not known.causal)
NEGATIVE = -1e30  # score of a padding choice: exp() of it is exactly 0, and it keeps gradients finite


@dataclass(frozen=True, slots=True)
class Packed:
    """N questions as R rows of L tokens each: R = 1 (packed) or C (one row per choice).

    ``segments``: 0 = seen by every later token of the row, c + 1 = choice c, -1 = padding. ``pools`` averages
    states [N, R, L, d] to [N, R, K, d] with R * K = C * P.
    """

    ids: Tensor  # [N, R, L] int64
    positions: Tensor  # [N, R, L] int64, real tokens of a choice's path counted from 0
    segments: Tensor  # [N, R, L] int64
    pools: Tensor  # [N, R, K, L] float32
    choice_mask: Tensor  # [N, C] bool
    answer: Tensor  # [N] int64

    def __len__(self) -> int:
        return self.ids.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name (what ``torch.func.vmap`` maps over)."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def take(self, index: Tensor) -> Packed:
        """The questions at ``index`` (any shape), padding columns that none of them needs removed."""
        part = {name: tensor[index] for name, tensor in self.tensors().items()}
        used = (part["segments"] >= 0).flatten(0, -2).any(0)
        longest = int(used.nonzero().max()) + 1 if used.any() else 1
        for name in ("ids", "positions", "segments", "pools"):
            part[name] = part[name][..., :longest]
        return type(self)(**part)


def is_causal(model: nn.Module) -> bool:
    """Whether a transformers model reads left to right."""
    config: Any = model.config
    return config.model_type not in ENCODERS


def pack(encoded: Encoded, causal: bool) -> Packed:
    """Rows for a whole model: stems shared between choices if ``causal``, else one row per choice."""
    if causal:
        return _shared_stems(encoded)
    positions = (encoded.mask.long().cumsum(-1) - 1).clamp(min=0)
    segments = torch.where(encoded.mask, 0, -1)
    return Packed(encoded.ids, positions, segments, encoded.pools, encoded.choice_mask, encoded.answer)


def _shared_stems(encoded: Encoded) -> Packed:
    ids, mask = encoded.ids.numpy(), encoded.mask.numpy()
    pools, real = encoded.pools.numpy(), encoded.choice_mask.numpy()
    number, choices, _ = ids.shape
    lengths = mask.sum(-1)
    same = ((ids == ids[:, :1]) & mask & mask[:, :1]) | ~real[..., None]
    shared = np.cumprod(same.all(1), axis=-1).sum(-1)  # [N] tokens common to all choices
    total = shared + np.where(real, lengths - shared[:, None], 0).sum(-1)
    shape = (number, int(total.max(initial=1)))
    out_ids = np.zeros(shape, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    segments = np.full(shape, -1, dtype=np.int64)
    count = pools.shape[2]
    out_pools = np.zeros((number, choices, count, shape[1]), dtype=np.float32)
    for n in range(number):
        stem = int(shared[n])
        out_ids[n, :stem], positions[n, :stem], segments[n, :stem] = ids[n, 0, :stem], np.arange(stem), 0
        at = stem
        for c in np.flatnonzero(real[n]):
            end = int(lengths[n, c])
            after = at + end - stem
            out_ids[n, at:after], segments[n, at:after] = ids[n, c, stem:end], c + 1
            positions[n, at:after] = np.arange(stem, end)
            out_pools[n, c, :, :stem] = pools[n, c, :, :stem]
            out_pools[n, c, :, at:after] = pools[n, c, :, stem:end]
            at = after
    return Packed(
        ids=torch.from_numpy(out_ids)[:, None],
        positions=torch.from_numpy(positions)[:, None],
        segments=torch.from_numpy(segments)[:, None],
        pools=torch.from_numpy(out_pools.reshape(number, 1, choices * count, shape[1])),
        choice_mask=encoded.choice_mask,
        answer=encoded.answer,
    )


def attention_mask(segments: Tensor, causal: bool) -> Tensor:
    """Additive float32 mask [rows, 1, L, L] of segments [rows, L]; a padding token sees itself only."""
    key, query = segments[..., None, :], segments[..., :, None]
    seen = (key == 0) | (key == query)
    step = torch.arange(segments.shape[-1], device=segments.device)
    if causal:
        seen = seen & (step[None, :] <= step[:, None])
    seen = (seen & (key >= 0) & (query >= 0)) | (step[None, :] == step[:, None])
    mask = torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, torch.finfo(torch.float32).min)
    return mask[:, None]


def inputs(config: Any, batch: Packed, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Keyword arguments of a transformers base model for a batch: rows are [N * R, L].

    ``dtype``: of the mask, which fused attention wants in the model's own.
    """
    length = batch.ids.shape[-1]
    segments = batch.segments.reshape(-1, length)
    positions = batch.positions.reshape(-1, length)
    if config.model_type == "roberta":
        positions = positions + config.pad_token_id + 1
    arguments: dict[str, Any] = {
        "input_ids": batch.ids.reshape(-1, length),
        "attention_mask": attention_mask(segments, config.model_type not in ENCODERS).to(dtype),
        "position_ids": positions,
    }
    if config.model_type in ENCODERS:
        arguments["token_type_ids"] = torch.zeros_like(positions)
    else:
        arguments["use_cache"] = False
    return arguments


def pooled(base: nn.Module, weights: Mapping[str, Tensor] | None, batch: Packed) -> Tensor:
    """Pooled final states [N, C, F] of a base model (``model.base_model``).

    Args:
        base: a transformers model without language head.
        weights: parameters to use instead of the model's own (by name), or None.
        batch: N questions.
    """
    arguments = inputs(base.config, batch, next(base.parameters()).dtype)
    if weights is None:
        states = base(**arguments).last_hidden_state
    else:
        # no weight of a base model is tied to another, and looking for ties is a tenth of a small model's pass
        call = torch.func.functional_call(base, dict(weights), args=(), kwargs=arguments, tie_weights=False)
        states = call.last_hidden_state
    return pool_states(states, batch)


def pool_states(states: Tensor, batch: Packed) -> Tensor:
    """Pooled states [N, C, F] from the final states [N * R, L, d] of a batch's rows."""
    number, rows, length = batch.ids.shape
    vectors = batch.pools.to(states.dtype) @ states.reshape(number, rows, length, states.shape[-1])
    choices = batch.choice_mask.shape[-1]
    return combine(vectors.reshape(number, choices, -1, states.shape[-1]))


def mask_padding(scores: Tensor, choice_mask: Tensor) -> Tensor:
    """Scores [..., C] with padding choices out of reach of any softmax or argmax."""
    return scores.masked_fill(~choice_mask, NEGATIVE)
