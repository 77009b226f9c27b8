"""One text in the tokens of several models, and where their tokens meet: what adapters see of the next model.

A chain begins in the tokens of its start block's model. A block of another model was made for its own tokens;
an adapter may read the same text through that model's embedding, and put the arriving states where the same
characters stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from assyllm.blocks.pool import Pool
from assyllm.comparator.activations import Rows, rows_of
from assyllm.zoo.encoding import Encoded


@dataclass(frozen=True, slots=True)
class Join:
    """The next block's model's own reading of r rows, for an adapter that looks at more than arriving states."""

    embedded: Tensor  # [r, T, d] through the next model's embedding
    mask: Tensor  # [r, T] bool, its real tokens
    align: Tensor | None  # [r, T, A] weights over the A arriving tokens, rows sum to one; None: the same tokens
    visible: Tensor  # [r, A, T] bool: which own tokens an arriving one may see (all, or none that begin later)
    causal: bool  # whether the next block's tokens see only those before them

    def arriving(self, states: Tensor) -> Tensor:
        """States ``[r, A, d]`` at arriving tokens, moved to the own tokens ``[r, T, d]``."""
        return states if self.align is None else self.align @ states


class Readings:
    """The same questions in the tokens of any model, chunk by chunk the same rows.

    Args:
        encoded: a model's name -> the questions in its tokens.
        embedding: a model's name -> its embedding.
        lead: the model whose token counts decide the chunks.
        same: a model's name -> the first model with the same tokenizer.
    """

    def __init__(
        self,
        encoded: Callable[[str], Encoded],
        embedding: Callable[[str], nn.Module],
        lead: str,
        same: Callable[[str], str],
        chunk_tokens: int | None = None,
    ) -> None:
        self._encoded, self._embedding, self.same = encoded, embedding, same
        first = encoded(lead)
        self._lead = rows_of(first) if chunk_tokens is None else rows_of(first, chunk_tokens)
        self._rows = {same(lead): self._lead}
        self._embedded: dict[str, list[Tensor]] = {}
        self._aligned: dict[tuple[str, str], list[Tensor]] = {}
        self._joins: dict[tuple[str, str, bool], list[Join]] = {}

    def rows(self, model: str) -> Rows:
        """The questions in a model's tokens."""
        model = self.same(model)
        if model not in self._rows:
            self._rows[model] = rows_of(self._encoded(model), like=self._lead)
        return self._rows[model]

    def embedded(self, model: str) -> list[Tensor]:
        """Per chunk ``[r, T, d]``: the text through a model's embedding."""
        if model not in self._embedded:
            embed = self._embedding(model)
            self._embedded[model] = [embed(chunk.ids, chunk.mask) for chunk in self.rows(model).chunks]
        return self._embedded[model]

    def joins(self, arriving: str, model: str, causal: bool) -> list[Join]:
        """Per chunk, what an adapter sees that puts a block of ``model`` on a stream in ``arriving``'s tokens."""
        key = self.same(arriving), model, causal
        if key not in self._joins:
            self._joins[key] = self._made_joins(*key)
        return self._joins[key]

    def _made_joins(self, arriving: str, model: str, causal: bool) -> list[Join]:
        own = self.same(model)
        aligned = self._alignments(arriving, own)
        chunks = zip(self.rows(arriving).chunks, self.rows(own).chunks, self.embedded(model), strict=True)
        joins = []
        for i, (old, new, embedded) in enumerate(chunks):
            seen = visible(old.spans, new.spans, new.mask, causal)
            joins.append(Join(embedded, new.mask, aligned[i] if arriving != own else None, seen, causal))
        return joins

    def _alignments(self, arriving: str, own: str) -> list[Tensor]:
        if (arriving, own) not in self._aligned and arriving != own:
            pairs = zip(self.rows(arriving).chunks, self.rows(own).chunks, strict=True)
            self._aligned[arriving, own] = [
                alignment(old.spans, old.mask, new.spans) for old, new in pairs
            ]  # fmt: skip
        return self._aligned.get((arriving, own), [])


def alignment(old: Tensor, old_mask: Tensor, new: Tensor) -> Tensor:
    """Which arriving tokens stand where a new token stands.

    A new token takes the mean of the arriving tokens that share characters with it; one that shares none (put
    in by hand, or white space) takes the last arriving token that ends before it, or the first of all.

    Args:
        old: ``[r, A, 2]`` spans of the arriving tokens, ``old_mask`` ``[r, A]`` their mask.
        new: ``[r, T, 2]`` spans of the new tokens.

    Returns:
        ``[r, T, A]`` float32, rows sum to one.
    """
    start, end = old[:, None, :, 0], old[:, None, :, 1]
    left, right = new[:, :, None, 0], new[:, :, None, 1]
    real = old_mask[:, None, :]
    shared = (torch.minimum(end, right) > torch.maximum(start, left)) & real
    before = (end <= left) & real
    last = before.int().cumsum(-1).argmax(-1)  # the last True, the first token where there is none
    alone = torch.zeros_like(shared).scatter_(-1, last.unsqueeze(-1), True)
    weights = torch.where(shared.any(-1, keepdim=True), shared, alone).float()
    return weights / weights.sum(-1, keepdim=True)


def visible(old: Tensor, new: Tensor, new_mask: Tensor, causal: bool) -> Tensor:
    """Which own tokens of the next model an arriving token may attend to.

    Before a causal block only those that begin before the arriving token ends (or are over by then: tokens put in by
    hand span nothing), so that the adapter shows a position nothing that the block would hide from it. (States that
    arrive from a bidirectional block have seen the whole text all the same: a model with such a block scores texts,
    it does not write them.)

    Returns:
        ``[r, A, T]`` bool, at least one True in every row.
    """
    seen = new_mask[:, None, :].expand(-1, old.shape[1], -1)
    if causal:
        end = old[:, :, None, 1]
        seen = seen & ((new[:, None, :, 0] < end) | (new[:, None, :, 1] <= end))
    first = torch.zeros_like(seen)
    first[..., 0] = True
    return torch.where(seen.any(-1, keepdim=True), seen, first)


def readings(pool: Pool, encoded: Callable[[str], Encoded]) -> Readings:
    """Readings of questions by the pool's models."""
    return Readings(encoded, pool.embedding, next(iter(pool.models)), pool.reads_as)
