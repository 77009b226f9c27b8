"""COR: how alike two blocks' activation distributions are, from histograms that add up over clients.

The paper names a KL divergence of activation distributions, layer by layer, computed once at initialisation,
and leaves open how activations become a distribution. Here: the values of a layer's hidden states at real
tokens (not the first, BOS or CLS), divided by the layer's root mean square on public text, counted in
equal bins over [-4, 4] (the end bins are open), smoothed by half a count a bin. COR = exp(-mean KL over
corresponding layers) in (0, 1], so that higher is better, as for CKA.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from assyllm.artifacts import ArtifactError

RANGE = 4.0  # root mean squares
SMOOTHING = 0.5  # counts added to every bin


def counts(values: Tensor, rms: float, bins: int, owner: Tensor, owners: int) -> np.ndarray:
    """Histograms of a layer's values, one per owner (client).

    Args:
        values: ``[k, d]`` hidden states at k real tokens.
        rms: the layer's root mean square on public text.
        owner: ``[k]`` int64, which owner a token belongs to.

    Returns:
        ``[owners, bins]`` int64 counts; infinite and NaN values are not counted.
    """
    scaled = (values.float() * (bins / (2 * RANGE * rms)) + bins / 2).floor()
    place = scaled.nan_to_num(nan=-1.0).clamp(-1, bins).long()
    finite = torch.isfinite(values)
    place = place.clamp(0, bins - 1) + owner[:, None] * bins
    flat = place if bool(finite.all()) else place[finite]
    return torch.bincount(flat.flatten(), minlength=owners * bins).view(owners, bins).numpy()


def smoothed(histogram: np.ndarray) -> np.ndarray:
    """Counts ``[..., bins]`` to a distribution without zeros."""
    raised = histogram.astype(np.float64) + SMOOTHING
    return raised / raised.sum(-1, keepdims=True)


def cor(p: np.ndarray, q: np.ndarray) -> float:
    """COR of two blocks.

    Args:
        p, q: counts ``[layers, bins]`` of the block that ends the chain and of the candidate. Where they have
            unlike numbers of layers, the longer block's layer at the same relative depth corresponds.

    Raises:
        ArtifactError: different numbers of bins.
    """
    if p.shape[-1] != q.shape[-1]:
        raise ArtifactError(f"COR of histograms with {p.shape[-1]} and {q.shape[-1]} bins")
    depth = min(len(p), len(q))
    left, right = smoothed(p[_matching(len(p), depth)]), smoothed(q[_matching(len(q), depth)])
    divergence = (left * np.log(left / right)).sum(-1).mean()
    return float(np.exp(-max(0.0, divergence)))


def _matching(layers: int, depth: int) -> list[int]:
    return [((2 * i + 1) * layers) // (2 * depth) for i in range(depth)]
