"""Running blocks over encoded questions, and what is read off their states: pooled vectors and histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from assyllm.blocks.block import Block
from assyllm.blocks.pool import Pool
from assyllm.comparator import cor
from assyllm.zoo.encoding import Encoded

CHUNK_TOKENS = 2048  # tokens of one forward pass (fits the cache at small widths)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that run together: r rows of T tokens, and where they stand among all N * C rows."""

    ids: Tensor  # [r, T] int64
    mask: Tensor  # [r, T] bool
    pools: Tensor  # [r, P, T] float32
    spans: Tensor  # [r, T, 2] int64
    index: Tensor  # [r] int64, n * C + c


@dataclass(frozen=True, slots=True)
class Rows:
    """The real rows of N questions with C choices, shortest first, in chunks."""

    chunks: tuple[Chunk, ...]
    shape: tuple[int, int, int]  # N, C, P

    def scatter(self, parts: Sequence[Tensor]) -> Tensor:
        """Per-chunk vectors ``[r, P, d]`` to ``[N, C, P, d]``, zeros at padding choices."""
        number, choices, vectors = self.shape
        width, device = (parts[0].shape[-1], parts[0].device) if parts else (1, None)
        out = torch.zeros(number * choices, vectors, width, device=device)
        for chunk, part in zip(self.chunks, parts, strict=True):
            out[chunk.index] = part
        return out.view(number, choices, vectors, width)


def rows_of(encoded: Encoded, chunk_tokens: int = CHUNK_TOKENS, like: Rows | None = None) -> Rows:
    """Lay out encoded questions for the blocks: padding choices dropped, rows of like length together.

    Args:
        like: the same questions in another model's tokens; its chunks hold the same rows then.
    """
    length = encoded.ids.shape[2]
    mask = encoded.mask.view(-1, length)
    indices = _chunked(encoded, chunk_tokens) if like is None else [chunk.index for chunk in like.chunks]
    chunks = []
    for index in indices:
        longest = int(mask[index].sum(-1).max())
        chunks.append(
            Chunk(
                ids=encoded.ids.view(-1, length)[index, :longest],
                mask=mask[index, :longest],
                pools=encoded.pools.flatten(0, 1)[index][..., :longest],
                spans=encoded.spans.flatten(0, 1)[index, :longest],
                index=index,
            )
        )
    return Rows(tuple(chunks), (*encoded.ids.shape[:2], encoded.pools.shape[2]))


def _chunked(encoded: Encoded, chunk_tokens: int) -> list[Tensor]:
    real = encoded.choice_mask.flatten().nonzero().flatten()
    lengths = encoded.mask.flatten(0, 1).sum(-1)[real]
    order = torch.argsort(lengths, stable=True)
    real, lengths = real[order], lengths[order]
    indices, start = [], 0
    while start < len(real):
        end = start + 1
        while end < len(real) and (end + 1 - start) * int(lengths[end]) <= chunk_tokens:
            end += 1
        indices.append(real[start:end])
        start = end
    return indices


@torch.no_grad()
def advance(block: Block, states: Sequence[Tensor] | None, rows: Rows) -> list[Tensor]:
    """One block over all chunks: states ``[r, T, d]`` in (None for a start block: the ids), states out."""
    inputs = [chunk.ids for chunk in rows.chunks] if states is None else states
    return block.each([(hidden, chunk.mask) for hidden, chunk in zip(inputs, rows.chunks, strict=True)])


def pooled(states: Sequence[Tensor], rows: Rows) -> Tensor:
    """The pooled vectors ``[N, C, P, d]`` of per-chunk states; ``combine`` makes features of them."""
    return rows.scatter([chunk.pools @ hidden for hidden, chunk in zip(states, rows.chunks, strict=True)])


@dataclass(frozen=True, slots=True)
class Native:
    """A model's own states on N questions: what every block gives when it stands where it came from."""

    pooled: dict[str, Tensor]  # block id -> [N, C, P, d]
    histograms: dict[str, np.ndarray]  # block id -> [owners, layers, bins] counts
    rms: dict[str, list[float]]  # block id -> root mean square of every layer's states


@torch.no_grad()
def native(
    pool: Pool,
    model: str,
    encoded: Encoded,
    owner: Tensor | None = None,
    owners: int = 1,
    bins: int = 32,
    rms: dict[str, list[float]] | None = None,
) -> Native:
    """Run a whole model once and keep, for each of its blocks, pooled states and histograms.

    Args:
        encoded: N questions in this model's own tokens.
        owner: ``[N]`` int64, the client of each question (all client 0 if None).
        rms: the layers' root mean squares on public text; measured on this text if None.
    """
    rows = rows_of(encoded)
    choices = encoded.ids.shape[1]
    owner = torch.zeros(len(encoded), dtype=torch.int64) if owner is None else owner
    counted = [_counted(chunk) for chunk in rows.chunks]
    token_owner = [
        owner[chunk.index // choices][:, None].expand(mask.shape)[mask]
        for chunk, mask in zip(rows.chunks, counted, strict=True)
    ]
    vectors, histograms, scales = {}, {}, {}
    inputs = [chunk.ids for chunk in rows.chunks]
    for info in pool.of_model(model):
        block = pool.block(info.id)
        traces = block.traces([(hidden, chunk.mask) for hidden, chunk in zip(inputs, rows.chunks, strict=True)])
        inputs = [trace[-1] for trace in traces]
        vectors[info.id] = pooled(inputs, rows)
        layers, scale = [], []
        for layer in range(len(block.stack)):
            parts = [trace[layer][mask] for trace, mask in zip(traces, counted, strict=True)]
            size = _rms(parts) if rms is None else rms[info.id][layer]
            pairs = zip(parts, token_owner, strict=True)
            layers.append(sum(cor.counts(part, size, bins, whose, owners) for part, whose in pairs))
            scale.append(size)
        histograms[info.id] = np.stack([np.zeros((owners, bins), dtype=np.int64) + h for h in layers], axis=1)
        scales[info.id] = scale
    return Native(vectors, histograms, scales)


def _counted(chunk: Chunk) -> Tensor:
    """The tokens that histograms count: real ones after the first (BOS or CLS, whose states are outliers)."""
    mask = chunk.mask.clone()
    mask[:, 0] = False
    return mask


def _rms(parts: Sequence[Tensor]) -> float:
    total = sum(float(part.double().pow(2).sum()) for part in parts)
    return max(1e-6, float(np.sqrt(total / max(1, sum(part.numel() for part in parts)))))
