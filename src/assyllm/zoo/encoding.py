"""Text of multiple-choice questions -> tensors, and the one pooled state that every method's head reads.

Every (question, choice) becomes a right-padded token row: ``BOS stem choice`` for decoders, ``[CLS] stem
[MASK] choice [SEP]`` for encoders. All decisions about tokens, truncation and pooling are in this file;
heads, CKA rows and adapters take what it gives.

The pooled state is [choice, slot * choice]: the mean state of the choice's tokens, and its product with the
state at the slot before the choice, where a language model holds its prediction of what comes next (a decoder
in the token before the choice, an encoder in the mask token). A linear head on the product can read "the
prediction agrees with the choice"; a head on mean states alone cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from assyllm.artifacts import ArtifactError

if TYPE_CHECKING:
    from assyllm.tasks.record import Question

POOLED = ("slot", "choice")  # the vectors averaged from a row's states; see `combine`


@dataclass(frozen=True, slots=True)
class Encoded:
    """N questions of at most C choices as right-padded rows of T tokens.

    ``pools[n, c, p]`` are the weights (each sums to one) with which row (n, c)'s states are averaged to its
    p-th pooled vector. ``spans`` are a token's first character and the one after its last in "stem choice":
    where the tokens of two tokenizers meet. A token put in by hand has an empty span at its place in the text.
    ``cut`` counts questions in which more than the context had to be shortened.
    """

    ids: Tensor  # [N, C, T] int64
    mask: Tensor  # [N, C, T] bool, True = real token, BOS/CLS/SEP included
    chosen: Tensor  # [N, C, T] bool, True = token of the choice
    pools: Tensor  # [N, C, P, T] float32
    spans: Tensor  # [N, C, T, 2] int64
    choice_mask: Tensor  # [N, C] bool, False = padding choice
    answer: Tensor  # [N] int64
    cut: int = 0

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Encoded:
        """The questions at ``index``, padding columns that none of them needs removed."""
        part = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "cut"}
        longest = max(1, int(part["mask"].sum(-1).max())) if len(part["ids"]) else 1
        part.update({name: part[name][..., :longest] for name in ("ids", "mask", "chosen", "pools")})
        part["spans"] = part["spans"][..., :longest, :]
        return replace(self, **part)

    def to(self, device: torch.device | str) -> Encoded:
        """The same questions on a device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "cut"})


def prefix_and_suffix(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids put around a text by hand: ``[CLS] .. [SEP]`` for encoders, BOS for decoders or nothing."""
    if tokenizer.cls_token_id is not None:
        return [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    if tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id], []
    return [], []


def largest_id(tokenizer: Any) -> int:
    """The largest id that a text may become, by its words or what is put around them; padding apart."""
    prefix, suffix = prefix_and_suffix(tokenizer)
    return max(tokenizer.vocab_size - 1, tokenizer.mask_token_id or 0, *prefix, *suffix)


def pad_id(tokenizer: Any) -> int:
    """The id that fills padding; it is masked everywhere, so any id does where a tokenizer has none."""
    return 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def encode(tokenizer: Any, questions: Sequence[Question], max_tokens: int, slot: bool = True) -> Encoded:
    """Tokenise every "stem choice" of ``questions``.

    A row longer than ``max_tokens`` (special tokens included) loses the end of its context, the same tokens
    for all choices of the question. Where that is not enough the question loses its beginning, then the
    choice its end; such questions are counted in ``Encoded.cut``.

    Args:
        tokenizer: a ``PreTrainedTokenizerFast`` (offsets are needed).
        questions: N questions; C is the largest number of choices among them.
        max_tokens: at least the special tokens plus two.
        slot: whether encoders get a mask token before the choice (see :data:`POOLED`).

    Raises:
        ArtifactError: ``max_tokens`` leaves no room, or the tokenizer gives no offsets.
    """
    prefix, suffix = prefix_and_suffix(tokenizer)
    between = [tokenizer.mask_token_id] if slot and tokenizer.mask_token_id is not None else []
    extra = len(prefix) + len(between) + len(suffix)
    room = max_tokens - extra
    if room < 2:
        raise ArtifactError(f"max_tokens {max_tokens} leaves no room for text beside the special tokens")
    if not getattr(tokenizer, "is_fast", False):
        raise ArtifactError("the tokenizer gives no offsets; a tokenizer.json (fast tokenizer) is needed")
    rows = _token_rows(tokenizer, questions)
    kept: list[list[tuple[list[int], np.ndarray, np.ndarray]]] = []
    cut = 0
    for question, choices in zip(questions, rows, strict=True):
        shortened, harmed = _shorten(choices, len(question.context), len(question.stem), room)
        kept.append(shortened)
        cut += harmed
    count = max((len(choices) for choices in kept), default=1)
    length = max((len(ids) for choices in kept for ids, _, _ in choices), default=1) + extra
    shape = (len(questions), count, length)
    ids = np.full(shape, pad_id(tokenizer), dtype=np.int64)
    mask = np.zeros(shape, dtype=bool)
    chosen = np.zeros(shape, dtype=bool)
    spans = np.zeros((*shape, 2), dtype=np.int64)
    for n, cut_choices in enumerate(kept):
        end = len(questions[n].stem)
        for c, (tokens, is_choice, offsets) in enumerate(cut_choices):
            stem = len(tokens) - int(np.sum(is_choice))  # tokens before the choice, which is always the row's end
            row = prefix + tokens[:stem] + between + tokens[stem:] + suffix
            ids[n, c, : len(row)] = row
            mask[n, c, : len(row)] = True
            chosen[n, c, len(row) - len(suffix) - len(tokens) + stem : len(row) - len(suffix)] = True
            last = end + 1 + len(questions[n].choices[c])
            at = 0
            for size, places in (
                (len(prefix), 0), (stem, offsets[:stem]), (len(between), end),
                (len(tokens) - stem, offsets[stem:]), (len(suffix), last),
            ):  # fmt: skip
                spans[n, c, at : at + size] = places
                at += size
    return Encoded(
        ids=torch.from_numpy(ids),
        mask=torch.from_numpy(mask),
        chosen=torch.from_numpy(chosen),
        pools=torch.from_numpy(_pool_weights(mask, chosen)),
        spans=torch.from_numpy(spans),
        choice_mask=torch.from_numpy(mask.any(-1)),
        answer=torch.tensor([q.answer for q in questions], dtype=torch.int64),
        cut=cut,
    )


def _token_rows(tokenizer: Any, questions: Sequence[Question]) -> list[list[tuple[list[int], np.ndarray]]]:
    """Per question and choice: token ids and character offsets [tokens, 2] in "stem choice"."""
    texts = [f"{q.stem} {choice}" for q in questions for choice in q.choices]
    if not texts:
        return []
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    pairs = zip(batch["input_ids"], batch["offset_mapping"], strict=True)
    flat = iter([(list(ids), np.asarray(offsets).reshape(-1, 2)) for ids, offsets in pairs])
    return [[next(flat) for _ in q.choices] for q in questions]


def _shorten(
    choices: list[tuple[list[int], np.ndarray]], context_end: int, stem_end: int, room: int
) -> tuple[list[tuple[list[int], np.ndarray, np.ndarray]], bool]:
    """Cut each row to ``room`` tokens and mark the choice's; True if question or choice lost tokens.

    Returns:
        Per choice: token ids, whether each is the choice's, its characters.
    """
    over = max(len(ids) for ids, _ in choices) - room
    out: list[tuple[list[int], np.ndarray, np.ndarray]] = []
    harmed = False
    for ids, offsets in choices:
        is_choice = offsets[:, 1] > stem_end + 1
        if len(ids) and not is_choice.any():
            is_choice[-1] = True  # an empty choice is read at the stem's last token
        if over <= 0:
            out.append((ids, is_choice, offsets))
            continue
        keep = np.ones(len(ids), dtype=bool)
        context = np.flatnonzero(~is_choice & (offsets[:, 1] <= context_end) & (context_end > 0))
        keep[context[max(0, len(context) - over) :]] = False
        question = np.flatnonzero(keep & ~is_choice)
        still = max(0, int(keep.sum()) - room)
        keep[question[:still]] = False
        still = max(0, int(keep.sum()) - room)
        keep[np.flatnonzero(keep)[len(np.flatnonzero(keep)) - still :]] = False
        harmed = harmed or len(context) < over
        out.append(([i for i, k in zip(ids, keep, strict=True) if k], is_choice[keep], offsets[keep]))
    return out, harmed


def _pool_weights(mask: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Averaging weights [N, C, P, T] of the vectors named in :data:`POOLED`; zero for padding choices."""
    first = chosen.argmax(-1)[..., None]  # 0 for padding choices
    slot = (np.arange(mask.shape[-1]) == np.maximum(first - 1, 0)) & mask.any(-1, keepdims=True)
    parts = {"choice": chosen, "slot": slot}
    stacked = np.stack([parts[name] for name in POOLED], axis=-2).astype(np.float32)
    return stacked / np.maximum(stacked.sum(-1, keepdims=True), 1)


def pool(states: Tensor, encoded: Encoded) -> Tensor:
    """The pooled state of every (question, choice): the input of every head and the rows of CKA.

    Args:
        states: [N, C, T, d], or [N * C, T, d], hidden states of ``encoded``'s rows.

    Returns:
        [N, C, F] in the states' dtype, where F = :func:`features` (d).
    """
    count, choices, length = encoded.ids.shape
    states = states.reshape(count, choices, length, states.shape[-1])
    return combine(encoded.pools.to(states.dtype) @ states)


def combine(vectors: Tensor) -> Tensor:
    """Pooled vectors [..., P, d], in the order of :data:`POOLED`, as one feature row [..., F]."""
    slot, choice = vectors.unbind(-2)
    return torch.cat([choice, slot * choice], dim=-1)


def features(width: int) -> int:
    """F, the width of a pooled state, for hidden states of ``width``."""
    return 2 * width
