"""Linear CKA from minibatches, summed over clients before the one division (paper section 3.2).

The paper prints HSIC as ``||cov(X'X, Y'Y)||_F^2``; that is a slip (the argument would be quadratic in the
states). This is the standard linear form, ``||cov(X, Y)||_F^2`` (Kornblith 2019), in Gram form. The default
estimator is the unbiased HSIC_1 (Song 2012), whose minibatch sums Nguyen (2021) proved unbiased as well;
the biased one reads 0.99 on *independent* samples of 32 rows and 4,096 columns.

Both estimators are inner products of suitably centred Gram matrices (U-centring, Szekely and Rizzo 2014, for
the unbiased one), so all pairs of m blocks cost one Gram matrix a block and one matrix product, instead of
three HSICs a pair, and CKA <= 1 holds by Cauchy-Schwarz also for sums over minibatches and clients. States of
equal width are centred and multiplied together (``assyllm bench comparator`` measures what that gains).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from assyllm.artifacts import ArtifactError

Estimator = Literal["unbiased", "biased"]
MINIMUM_ROWS = 4  # HSIC_1 divides by n (n - 3)
TILE = 128  # examples along a tile of a Gram matrix
AT_ONCE = 2**19  # numbers of states that are worked on together


@dataclass(frozen=True, slots=True)
class HsicTerms:
    """Sums of HSIC over minibatches: cross terms and the two self terms, float64, of equal shape.

    Terms of further minibatches or clients are added; :meth:`cka` divides once, at the end.
    """

    xy: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    rows: int = 0

    def __add__(self, other: HsicTerms) -> HsicTerms:
        return HsicTerms(self.xy + other.xy, self.xx + other.xx, self.yy + other.yy, self.rows + other.rows)

    def scaled(self, factor: float) -> HsicTerms:
        """The terms as if every row counted ``factor`` times."""
        return HsicTerms(factor * self.xy, factor * self.xx, factor * self.yy, int(factor * self.rows + 1e-9))

    def within(self, most: float) -> HsicTerms:
        """One device's terms, each row counting less where they are more than ``most``."""
        share = min(1.0, most / max(1, self.rows))
        return self if share == 1 else self.scaled(share)

    @classmethod
    def zeros(cls, *shape: int) -> HsicTerms:
        """No data yet."""
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape))

    def cka(self) -> np.ndarray:
        """CKA elementwise, in [-1, 1] and near 0 for independent states; NaN nowhere: see :meth:`scored`.

        Entries without a score are 0; ask :meth:`scored` which ones those are.
        """
        scored = self.scored()
        bottom = np.sqrt(np.where(scored, self.xx, 1.0)) * np.sqrt(np.where(scored, self.yy, 1.0))
        return np.clip(np.where(scored, self.xy / bottom, 0.0), -1.0, 1.0)

    def possible(self) -> bool:
        """Whether there are states that give these terms: none gives a cross term above what its self terms allow.

        By a thousandth is no matter: sums in float32 round.
        """
        selves = (self.xx >= 0) & (self.yy >= 0)
        with np.errstate(invalid="ignore", over="ignore"):
            most = np.sqrt(self.xx) * np.sqrt(self.yy)
        return bool((selves & (np.abs(self.xy) <= 1.001 * most)).all())

    def scored(self) -> np.ndarray:
        """True where there is a score: finite terms and both self terms above 0."""
        finite = np.isfinite(self.xy) & np.isfinite(self.xx) & np.isfinite(self.yy)
        return finite & (self.xx > 0) & (self.yy > 0)


def minibatches(rows: int, size: int) -> list[slice]:
    """Cut ``rows`` examples into minibatches of nearly equal size, about ``size`` each, none below four.

    Fewer than four rows give no minibatch (and so no score).
    """
    if rows < MINIMUM_ROWS:
        return []
    count = min(math.ceil(rows / size), rows // MINIMUM_ROWS)
    edges = [round(i * rows / count) for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def centred_grams(states: Tensor, estimator: Estimator) -> Tensor:
    """Centred Gram matrices, scaled so that their inner products are HSIC.

    Args:
        states: ``[m, n, d]``, n >= 4 examples of m blocks, any floating dtype (upcast to float32: in fp16
            a Gram matrix overflows on real outlier features).

    Returns:
        ``[m, n * n]`` float32 (float64 for float64 states).

    Raises:
        ArtifactError: fewer than four examples.
    """
    states, shift = _centred(states, estimator)
    count = states.shape[-2]
    return _gram(states, states, shift, shift, estimator).flatten(-2) / math.sqrt(_pairs(count, estimator))


def _pairs(count: int, estimator: Estimator) -> int:
    """What HSIC's sum over pairs of n examples is divided by."""
    return count * (count - 3) if estimator == "unbiased" else (count - 1) ** 2


def _centred(states: Tensor, estimator: Estimator) -> tuple[Tensor, Tensor]:
    """States less their mean, and what U-centring takes off row i and column i of their Gram matrix.

    With centred states a row of the Gram matrix sums to zero, so without its diagonal to minus the state's
    squared norm: row sums need no Gram matrix.
    """
    count = states.shape[-2]
    if count < MINIMUM_ROWS:
        raise ArtifactError(f"CKA needs at least {MINIMUM_ROWS} examples, {count} given")
    states = states if states.dtype == torch.float64 else states.float()
    states = states - states.mean(-2, keepdim=True)
    if estimator == "biased":
        return states, torch.zeros(states.shape[:-1], dtype=states.dtype)
    rows = -states.square().sum(-1)
    return states, rows / (count - 2) - rows.sum(-1, keepdim=True) / (2 * (count - 1) * (count - 2))


def _gram(x: Tensor, y: Tensor, above: Tensor, beside: Tensor, estimator: Estimator, bf16: bool = False) -> Tensor:
    """Rows ``x`` of centred Gram matrices ``[m, a, b]``, from their diagonal on (not counted if unbiased)."""
    gram = (x.bfloat16() @ y.bfloat16().mT).float() if bf16 else x @ y.mT
    if estimator == "unbiased":
        gram -= above[..., :, None]
        gram -= beside[..., None, :]
        gram.diagonal(dim1=-2, dim2=-1).zero_()
    return gram


def centred_padded(grams: Tensor, real: Tensor, estimator: Estimator) -> Tensor:
    """:func:`centred_grams` of minibatches of unlike sizes at once, from Gram matrices that are not centred.

    Args:
        grams: ``[..., b, n, n]`` float64 of b minibatches, padded to n examples, zero at padding.
        real: ``[b, n]`` bool, False: padding; each minibatch has at least four examples.

    Returns:
        ``[..., b, n, n]``, zero at padding.
    """
    pairs = real.unsqueeze(-1) & real.unsqueeze(-2)
    count = real.sum(-1).double()[:, None, None]
    if estimator == "unbiased":  # U-centring
        pairs = pairs & ~torch.eye(real.shape[-1], dtype=torch.bool)
        grams, by, freedom = grams * pairs, count - 2, count * (count - 3)
        whole = (count - 1) * (count - 2)
    else:
        by, whole, freedom = count, count.square(), (count - 1).square()
    rows = grams.sum(-1, keepdim=True) / by
    centred = grams - rows - rows.mT + grams.sum((-1, -2), keepdim=True) / whole
    return centred.masked_fill_(~pairs, 0) / freedom.sqrt()


def paired_terms(x: Tensor, y: Tensor, batch: int, estimator: Estimator = "unbiased") -> HsicTerms:
    """HSIC sums of m pairs: the i-th of ``x`` against the i-th of ``y``.

    Args:
        x: ``[m, n, d]``; ``y``: ``[m, n, e]``, the same n examples.
        batch: examples of a minibatch.

    Returns:
        Terms of shape ``[m]``; zero (no score) where n < 4. A minibatch weighs as many times as it has rows.

    Raises:
        ArtifactError: unlike numbers of examples, a minibatch of none, or an unknown estimator.
    """
    _check([x.shape[1], y.shape[1]], batch, estimator)
    terms = HsicTerms.zeros(x.shape[0])
    for part in minibatches(x.shape[1], batch):
        left, right = centred_grams(x[:, part], estimator), centred_grams(y[:, part], estimator)
        size = part.stop - part.start
        xy, xx, yy = (size * (a * b).sum(-1).double().numpy() for a, b in ((left, right), (left, left), (right, right)))
        terms = terms + HsicTerms(xy, xx, yy, size)
    return terms


def all_pairs(
    states: Sequence[Tensor], batch: int, estimator: Estimator = "unbiased", bf16: bool = False
) -> np.ndarray:
    """HSIC sums of every block with every block.

    Args:
        states: one ``[n, d_i]`` tensor a block, the same n examples in all.
        batch: examples of a minibatch. The paper's is 32; n at once uses all pairs of examples, so that the
            estimate scatters less.
        bf16: multiply the centred states in bfloat16, for machines that are faster at it; all else is float32.

    Returns:
        ``[m, m]`` float64, symmetric, self terms on the diagonal; zeros where n < 4.

    Raises:
        ArtifactError: unlike numbers of examples, a minibatch of none, or an unknown estimator.
    """
    _check([len(rows) for rows in states], batch, estimator)
    total = np.zeros((len(states), len(states)))
    flat = torch.empty(0)
    for part in minibatches(states[0].shape[0], batch):
        size = part.stop - part.start
        cuts = [slice(at, min(at + TILE, size)) for at in range(0, size, TILE)]
        numbers = sum((a.stop - a.start) * (size - a.start) for a in cuts)
        if flat.shape[1:] != (numbers,):  # one allocation for minibatches of equal size
            flat = torch.empty(len(states), numbers, dtype=torch.promote_types(states[0].dtype, torch.float32))
        for run in _runs(states, size):
            x, shift = _centred(torch.stack([s[part] for s in states[run]]), estimator)
            at = 0
            for a in cuts:  # Gram matrices are symmetric: a tile row from its diagonal on, and that twice, suffices
                tile = _gram(x[:, a], x[:, a.start :], shift[:, a], shift[:, a.start :], estimator, bf16)
                tile[:, :, a.stop - a.start :] *= math.sqrt(2)
                flat[run, at : at + tile[0].numel()] = tile.flatten(-2)
                at += tile[0].numel()
        total += size / _pairs(size, estimator) * (flat @ flat.T).double().numpy()
    return total


def _runs(states: Sequence[Tensor], rows: int) -> Iterator[slice]:
    """Runs of neighbouring blocks of equal width, as many as fit a processor's cache: they are multiplied together."""
    start = 0
    for end in range(1, len(states) + 1):
        width = states[start].shape[-1]
        full = (end - start + 1) * rows * width > AT_ONCE
        if end == len(states) or full or states[end].shape[-1] != width:
            yield slice(start, end)
            start = end


def pair_terms(table: np.ndarray, a: int, b: int) -> HsicTerms:
    """The terms of blocks ``a`` and ``b`` out of :func:`all_pairs`."""
    return HsicTerms(table[a, b], table[a, a], table[b, b])


def cka(x: Tensor, y: Tensor, batch: int | None = None, estimator: Estimator = "unbiased") -> float | None:
    """CKA of states ``[n, d]`` and ``[n, e]`` of the same n examples; None if there is no score.

    Raises:
        ArtifactError: no matrices of as many examples, a minibatch of none, or an unknown estimator.
    """
    if x.dim() != 2 or y.dim() != 2:
        raise ArtifactError(f"CKA compares states [n, d] and [n, e]: {list(x.shape)} and {list(y.shape)} are given")
    x, y = _sized(x.detach()), _sized(y.detach())
    terms = paired_terms(x[None], y[None], x.shape[0] if batch is None else batch, estimator)
    return float(terms.cka()[0]) if terms.scored()[0] and varies(x) and varies(y) else None


def _sized(states: Tensor) -> Tensor:
    """States times a power of two, the largest about 1: CKA keeps its bits, and squares stay in float's range."""
    states = states if states.dtype == torch.float64 else states.float()
    largest = float(states.abs().amax()) if states.numel() else 0.0
    if not 0 < largest < math.inf:
        return states
    return torch.ldexp(states, torch.tensor(-math.frexp(largest)[1]))


def varies(states: Tensor) -> bool:
    """Whether states ``[n, d]`` tell examples apart, the one that lies farthest off left out.

    Equal ones differ by rounding only, whose CKA would be 1; all alike but one leave nothing of an unbiased HSIC.
    """
    states = states.double()
    off = (states - states.mean(0)).square().sum(-1)
    rest = states[torch.arange(len(states)) != int(off.argmax())]
    spread = (rest - rest.mean(0)).square().sum()
    return bool(spread > 1e-9 * states.square().sum())


def _check(rows: Sequence[int], batch: int, estimator: str) -> None:
    if len(set(rows)) > 1:
        raise ArtifactError(f"CKA compares states of the same examples: {sorted(set(rows))} are given")
    if rows and rows[0] and batch < 1:
        raise ArtifactError(f"CKA in minibatches of {batch}")
    if estimator not in get_args(Estimator):
        raise ArtifactError(f"estimator: {estimator!r} is none of {', '.join(get_args(Estimator))}")


def column_scale(reference: Tensor, limit: float = 8.0) -> Tensor:
    """Factors ``[d]`` that tame outlier dimensions: a column's deviation is held to ``limit`` medians.

    CKA weighs columns by variance, so that a few outlier features of a real model would be the whole score.
    The factors come from public text, so that all clients use the same and their terms stay summable.
    """
    deviation = reference.double().flatten(0, -2).std(0)
    living = deviation[deviation > 0]  # columns that never change say nothing of how far others go
    ceiling = limit * (living.median() if len(living) else deviation.new_tensor(0.0))
    return torch.where(deviation > ceiling, ceiling / deviation.clamp(min=1e-12), 1.0).float()
