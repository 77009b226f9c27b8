"""Native contexts: every block inside its own model, on the clients' data, computed once for all chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from assyllm import params
from assyllm.blocks.pool import Pool
from assyllm.comparator import compatibility as by
from assyllm.comparator.activations import native
from assyllm.comparator.cka import all_pairs, pair_terms
from assyllm.comparator.cor import cor
from assyllm.comparator.public import Public
from assyllm.tasks.record import Question
from assyllm.zoo.encoding import combine, encode


def score_clients(
    pool: Pool,
    train: Sequence[Question],
    owned: Sequence[Sequence[int]],
    clients: Sequence[int],
    public: Public,
    comparator: params.Comparator,
    max_tokens: int,
) -> dict[str, Tensor]:
    """Native states and terms of some clients.

    Returns:
        ``question`` [n] (indices into ``train``), ``client`` [k], ``pooled/<block>`` [n, C, P, d], ``hsic``
        [k, m, m] float64 over ``pool.ids``, ``histogram/<block>`` [k, layers, bins] int64.
    """
    items = [item for client in clients for item in owned[client]]
    owner = torch.tensor([i for i, c in enumerate(clients) for _ in owned[c]], dtype=torch.int64)
    out: dict[str, Tensor] = {
        "question": torch.tensor(items, dtype=torch.int64),
        "client": torch.tensor(list(clients), dtype=torch.int64),
    }
    features: dict[str, Tensor] = {}
    real = torch.zeros(0, 1, dtype=torch.bool)
    for model in pool.models:
        encoded = encode(pool.tokenizer(model), [train[item] for item in items], max_tokens)
        real = encoded.choice_mask
        rms = {info.id: public.rms[info.id].tolist() for info in pool.of_model(model)}
        found = native(pool, model, encoded, owner, len(clients), comparator.histogram_bins, rms)
        for block, states in found.pooled.items():
            out[f"pooled/{block}"] = states.contiguous()
            out[f"histogram/{block}"] = torch.from_numpy(found.histograms[block])
            features[block] = combine(states) * public.scale[block]
    terms = np.zeros((len(clients), len(pool.ids), len(pool.ids)))
    for place in range(len(clients)):
        mine = (owner == place).nonzero().flatten()
        if len(mine):
            rows = [features[block][mine][real[mine]] for block in pool.ids]
            terms[place] = all_pairs(rows, comparator.cka_batch, comparator.estimator)
    out["hsic"] = torch.from_numpy(terms)
    return out


def correlations(shards: Sequence[Path], blocks: Sequence[str]) -> dict[tuple[str, str], float]:
    """CKA of all pairs of blocks in their own models, over every client: what the paper calls block correlation.

    Args:
        shards: the score stage's files of one task.
        blocks: the pool's block ids, in its order.
    """
    hsic = sum(load_file(shard)["hsic"].sum(0) for shard in shards)
    found = {}
    for i, a in enumerate(blocks):
        for j, b in enumerate(blocks[:i]):
            terms = pair_terms(np.asarray(hsic), i, j)
            if terms.scored():
                found[a, b] = min(1.0, max(0.0, float(terms.cka())))
    return found


class NativeTable:
    """What is known of blocks without any chain, from the sums of the clients that were asked.

    Args:
        blocks: the pool's block ids, in its order.
        hsic: ``[m, m]`` HSIC sums of all pairs; ``histograms[block]``: ``[layers, bins]`` counts.
    """

    def __init__(
        self, pool: Pool, blocks: Sequence[str], hsic: np.ndarray, histograms: Mapping[str, np.ndarray]
    ) -> None:
        self._pool, self._hsic, self._histograms = pool, hsic, histograms
        self._place = {block: i for i, block in enumerate(blocks)}

    def cka(self, block: str, candidate: str) -> float | None:
        """CKA of what ``block`` gives and what ``candidate`` natively receives; None without a score."""
        before = self._pool.before(candidate)
        if before is None:
            return None
        terms = pair_terms(self._hsic, self._place[block], self._place[before])
        return float(terms.cka()) if bool(terms.scored()) else None

    def cor(self, block: str, candidate: str) -> float:
        """COR of the two blocks."""
        return cor(self._histograms[block], self._histograms[candidate])

    def score(self, block: str, candidate: str, weight: float) -> float | None:
        """Native compatibility: what a shortlist is drawn from."""
        return by.compatibility(self.cka(block, candidate), self.cor(block, candidate), weight)
