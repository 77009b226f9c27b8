"""The scoring head in closed form: ridge on pooled states, from sums that add up over clients.

A question's choices are compared with each other, so features and targets are centred per question: the head
learns w with  w'(f_c - mean f)  ~  [c is the answer] - 1 / C. Scores are f'w; the best choice is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from assyllm import seeding
from assyllm.adapter import sent
from assyllm.adapter.limit import SLACK, Limit, broken, shortened
from assyllm.artifacts import ArtifactError
from assyllm.zoo.forward import mask_padding


def centred(features: Tensor, choice_mask: Tensor) -> Tensor:
    """Features ``[N, C, F]`` less their question's mean over real choices; zero at padding choices."""
    real = choice_mask.unsqueeze(-1).to(features.dtype)
    mean = (features * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
    return (features - mean) * real


def sketched(features: Tensor, dims: int | None, block: str) -> Tensor:
    """A block's features ``[..., F]`` as the head takes them: beyond ``dims`` through a random projection.

    The projection is seeded by the block, so that devices and server make the same one and nothing is sent. It
    keeps inner products in expectation (Johnson and Lindenstrauss 1984); at 7B widths a block would otherwise send
    8,192 x 8,192 sums.
    """
    if dims is None or features.shape[-1] <= dims:
        return features
    return features @ _projection(block, features.shape[-1], dims).to(features.device)


@lru_cache(maxsize=64)
def _projection(block: str, width: int, dims: int) -> Tensor:
    drawn = seeding.rng("sketch", block, width, dims).standard_normal((width, dims), dtype="float32")
    return torch.from_numpy(drawn) / dims**0.5


@dataclass(frozen=True, slots=True)
class HeadSums:
    """Sufficient statistics of the head, float64; ``a + b`` pools two clients' questions."""

    xx: Tensor  # [F, F]
    xy: Tensor  # [F]
    yy: Tensor  # []
    n: Tensor  # [] rows, i.e. real choices
    questions: Tensor  # []

    @classmethod
    def zeros(cls, features: int) -> HeadSums:
        """No questions yet."""
        shapes: tuple[tuple[int, ...], ...] = ((features, features), (features,), (), (), ())
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    @classmethod
    def of(
        cls,
        features: Tensor,
        choice_mask: Tensor,
        answer: Tensor,
        explained: Tensor | None = None,
        limit: Limit | None = None,
    ) -> HeadSums:
        """The sums of N questions.

        Args:
            features: ``[N, C, F]`` pooled states.
            choice_mask: ``[N, C]`` bool, False = padding choice.
            answer: ``[N]`` int64.
            explained: ``[N, C]`` scores of another head; the sums then are those of what it leaves unexplained.
            limit: rows (a choice's centred features) and targets (a question's, over its choices) are cut to it, and
                where questions are more than it allows, each counts less.

        Raises:
            ArtifactError: shapes that do not go together, or an answer that is no choice.
        """
        if features.dim() != 3 or features.shape[:2] != choice_mask.shape or answer.shape != features.shape[:1]:
            shapes = f"{list(features.shape)}, {list(choice_mask.shape)} and {list(answer.shape)}"
            raise ArtifactError(f"a head's sums of {shapes}: [N, C, F], [N, C] and [N] are expected")
        if len(answer) and not 0 <= int(answer.min()) <= int(answer.max()) < choice_mask.shape[1]:
            raise ArtifactError(f"a head's sums: an answer is none of {choice_mask.shape[1]} choices")
        x, y = (part.flatten(0, 1) for part in rows_of(features, choice_mask, answer, explained, limit))
        questions = torch.tensor(float(len(answer)), dtype=torch.float64)
        return cls(x.T @ x, x.T @ y, y @ y, choice_mask.sum().double(), questions).within(limit)

    def __add__(self, other: HeadSums) -> HeadSums:
        if self.xy.shape != other.xy.shape:
            raise ArtifactError(f"a head's sums of {len(self.xy)} and of {len(other.xy)} features do not add up")
        return HeadSums(*(a + b for a, b in zip(self.parts(), other.parts(), strict=True)))

    def within(self, limit: Limit | None) -> HeadSums:
        """One device's sums, each question counting less where they are more than the limit allows."""
        share = 1.0 if limit is None else limit.share(float(self.n), float(self.questions))
        return self if share == 1 else HeadSums(*(part * share for part in self.parts()))

    def parts(self) -> tuple[Tensor, ...]:
        """The five tensors, in the order of the fields."""
        return self.xx, self.xy, self.yy, self.n, self.questions

    def breaks(self, limit: Limit) -> str:
        """Which bound a device's sums break, "" if none."""
        n, questions = float(self.n), float(self.questions)
        if not 0 <= questions <= min(n, limit.examples * SLACK):
            return "sums of more examples than allowed"
        return broken(limit, self.xx, self.xy, self.yy, n, questions)

    @property
    def bytes(self) -> int:
        """Bytes of one upload."""
        return sent.head_sums(self.xy.numel())

    def fit(self, ridge: float) -> Head:
        """The ridge fit on columns scaled to equal variance.

        Args:
            ridge: penalty relative to a column's variance.

        Raises:
            ArtifactError: no rows, sums that are not finite, or of too few rows for a ridge of 0.
        """
        return self.fits([ridge])[0]

    def fits(self, grid: Sequence[float]) -> list[Head]:
        """:meth:`fit` at every ridge of a grid."""
        if wrong := [ridge for ridge in grid if not 0 <= ridge < math.inf]:
            raise ArtifactError(f"ridge: {wrong[0]} is not a number from 0")
        if float(self.n) < 1:
            raise ArtifactError("a head cannot be fitted to no questions")
        return [Head((weight / self._scale()).float()) for _, _, weight in self._solved(grid)]

    def _scale(self) -> Tensor:
        """Columns' root mean squares ``[F]``, which the ridge is relative to."""
        return (self.xx.diagonal() / self.n.clamp(min=1)).clamp(min=1e-12).sqrt()

    def _solved(self, grid: Sequence[float]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """At every ridge: Cholesky factor of the scaled X'X with it, scaled X'y, weights of the scaled columns."""
        if not bool(torch.isfinite(self.xx).all() and torch.isfinite(self.xy).all()):
            raise ArtifactError("head sums are not finite")
        n, scale = self.n.clamp(min=1), self._scale()
        xx, xy = self.xx / n / torch.outer(scale, scale), self.xy / n / scale
        along = xx.diagonal().clone()
        for ridge in grid:
            xx.diagonal().copy_(along + ridge)
            factor, failed = torch.linalg.cholesky_ex(xx)
            if int(failed):
                raise ArtifactError(f"no head at ridge {ridge}: fewer independent rows than features")
            yield factor, xy, torch.cholesky_solve(xy[:, None], factor)[:, 0]

    def evidence(self, grid: Sequence[float]) -> tuple[float, Head]:
        """How much more probable the features make the labels, and the ridge head that says so.

        The marginal likelihood of Bayesian linear regression, noise variance at its best value (MacKay 1992),
        against that of no features at all. It weighs fit against freedom and needs the sums alone. A minimum over
        generalised cross-validation was tried first: with fewer rows than columns it is too easily fooled.
        Features and targets are centred per question, so a question of C choices counts C - 1 rows.

        Returns:
            The log Bayes factor in nats a row, best over ``grid`` (above 0: the features tell something), and the
            head at that ridge.

        Raises:
            ArtifactError: a ridge that is not above 0, or sums that are not finite.
        """
        if not grid or not all(0 < ridge < math.inf for ridge in grid):
            raise ArtifactError(f"ridges {list(grid)}: numbers above 0 are expected")
        rows = (self.n - self.questions).clamp(min=1)
        variance = (self.yy / self.n.clamp(min=1)).clamp(min=1e-12)
        found = []
        for ridge, (factor, along, weight) in zip(grid, self._solved(grid), strict=True):
            left = ((variance - along @ weight) / variance).clamp(min=1e-12)
            freedom = 2 * factor.diagonal().log().sum() - len(weight) * math.log(ridge)
            found.append((float(-0.5 * left.log() - 0.5 * freedom / rows), ridge, weight))
        best = max(found, key=lambda entry: entry[:2])
        return best[0], Head((best[2] / self._scale()).float())

    def of_columns(self, index: Tensor) -> HeadSums:
        """The sums of some of the features: what devices that have these alone would send, where no limit cuts rows.

        Args:
            index: ``[f]`` int64.
        """
        return HeadSums(self.xx[index][:, index], self.xy[index], self.yy, self.n, self.questions)

    def loss(self, head: Head) -> float:
        """Mean squared error of a head per choice on these sums."""
        w = head.weight.double()
        return float((self.yy - 2 * w @ self.xy + w @ self.xx @ w) / self.n.clamp(min=1))


def rows_of(
    features: Tensor,
    choice_mask: Tensor,
    answer: Tensor,
    explained: Tensor | None = None,
    limit: Limit | None = None,
) -> tuple[Tensor, Tensor]:
    """What the head's sums are of, float64, zero at padding choices: x ``[N, C, F]`` and y ``[N, C]``.

    Arguments as in :meth:`HeadSums.of`.
    """
    x, y = centred(features.double(), choice_mask), target(choice_mask, answer)
    if explained is not None:
        y = y - centred(explained.double().unsqueeze(-1), choice_mask).squeeze(-1)
    return (x, y) if limit is None else (shortened(x, limit.x), shortened(y, limit.y))


def target(choice_mask: Tensor, answer: Tensor) -> Tensor:
    """``[N, C]`` float64: one at the answer, centred over real choices, zero at padding choices."""
    real = choice_mask.double()
    hot = torch.zeros_like(real).scatter_(1, answer[:, None], 1.0)
    return (hot - 1 / real.sum(1, keepdim=True).clamp(min=1)) * real


class Head(nn.Module):
    """Scores ``[N, C]`` from features ``[N, C, F]``."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, features: Tensor, choice_mask: Tensor) -> Tensor:
        """Scores, padding choices out of reach of any argmax."""
        scores = centred(features, choice_mask) @ self.weight.to(features.dtype)
        return mask_padding(scores, choice_mask)


@torch.no_grad()
def accuracy(head: Head, features: Tensor, choice_mask: Tensor, answer: Tensor) -> float:
    """Share of questions whose best-scored choice is the answer."""
    return float((head(features, choice_mask).argmax(-1) == answer).double().mean())


def fit_on_dev(
    sums: HeadSums, grid: Sequence[float], features: Tensor, choice_mask: Tensor, answer: Tensor
) -> tuple[Head, float, float]:
    """The head whose ridge is best on the server's development split, the stronger ridge at a tie.

    Returns:
        The head, its ridge, its accuracy on the development split.
    """
    tried = zip(sums.fits(grid), grid, strict=True)
    scored = [(accuracy(head, features, choice_mask, answer), ridge, head) for head, ridge in tried]
    best = max(scored, key=lambda entry: (entry[0], entry[1]))
    return best[2], best[1], best[0]
