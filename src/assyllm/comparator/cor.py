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
    finite = torch.isfinite(values)
    place = _bins(values, rms, bins) + owner[:, None] * bins
    flat = place if bool(finite.all()) else place[finite]
    return torch.bincount(flat.flatten(), minlength=owners * bins).view(owners, bins).numpy()


def _bins(values: Tensor, rms: float, bins: int) -> Tensor:
    """Which of the equal bins over [-4, 4] root mean squares a value is in, int64; the end bins are open."""
    scaled = (values.float() * (bins / (2 * RANGE * rms)) + bins / 2).floor()
    return scaled.nan_to_num(nan=-1.0).clamp(-1, bins).long().clamp(0, bins - 1)


class Spread:
    """A layer's values as they come, for a histogram over their root mean square, known only when all have come.

    They are counted by sign, exponent and the first 11 bits of their mantissa, so that memory does not grow with the
    number of tokens: 8 MB a layer. That is all of a 16-bit value; of a float32 one the rest, at most 2^-11, is cut off.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._counts = torch.zeros(2**20, dtype=torch.int64, device=device)
        self._squares, self._values = 0.0, 0

    def add(self, values: Tensor) -> None:
        """Count further values, of any shape."""
        flat = values.float().flatten()
        places = (flat.view(torch.int32) >> 12) + 2**19
        self._counts += torch.bincount(places, minlength=2**20)
        self._squares += float(flat.double().square().sum())
        self._values += len(flat)

    def histogram(self, bins: int) -> np.ndarray:
        """Counts ``[bins]`` int64; all zero where values are not finite or all of them are 0."""
        rms = (self._squares / max(1, self._values)) ** 0.5
        if not np.isfinite(rms) or rms == 0:
            return np.zeros(bins, dtype=np.int64)
        seen = self._counts.nonzero()[:, 0].cpu()
        values = (seen.int() - 2**19 << 12).view(torch.float32)
        found = torch.zeros(bins, dtype=torch.int64)
        return found.index_add_(0, _bins(values, rms, bins), self._counts.cpu()[seen]).numpy()


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
