"""How much one device may add to each sum: ``federated.row_norm`` and ``federated.max_examples`` in numbers.

The unit of a row is what the server knows before any client answers: the root mean square norm of the same block's
rows on its public text. So one number goes for models of any width and scale. The unit of a head's target is the
one-hot answer (norm below 1). The norms are sent once, with the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from assyllm import params
from assyllm.adapter.limit import Limit
from assyllm.assembly.head import centred, sketched
from assyllm.blocks.pool import Pool
from assyllm.federated.data import TaskData
from assyllm.zoo.encoding import combine


class Limits:
    """The bounds of one run; infinite where a setting is null."""

    def __init__(self, pool: Pool, data: TaskData, federated: params.Federated, head: params.Head) -> None:
        self._pool, self._data, self._head = pool, data, head
        self._long = math.inf if federated.row_norm is None else federated.row_norm
        self.examples = math.inf if federated.max_examples is None else float(federated.max_examples)
        self._choices = max(len(question.choices) for question in data.splits["train"])
        self._typical: dict[str, float] = {}  # norms of a block's states
        self._read: dict[tuple[str, int | None], float] = {}  # of what a head reads of them

    def probe(self, block: str) -> Limit:
        """Of a candidate's sums for a head."""
        return self.head([block])

    def head(self, blocks: Sequence[str], dims: int | None = None) -> Limit:
        """Of the sums of a head that reads ``blocks`` side by side, ``dims`` numbers of each (None: the head's)."""
        x = math.hypot(*(self._features(block, dims or self._head.sketch_dims) for block in blocks))
        choices = self._choices * self.examples
        return Limit(self._long * x, self._long, choices, self.examples, choices)

    def join(self, last: str, block: str) -> Limit:
        """Of a candidate's HSIC terms, and of an adapter's sums from states after ``last`` to those it receives."""
        before, choices = self._pool.before(block), self._choices * self.examples
        if before is None:
            return Limit(examples=self.examples, choices=choices)
        vectors = self._data.public.pooled[before].shape[2]
        x, y = self._long * self._states(last), self._long * self._states(before)
        return Limit(x, y, choices * vectors, self.examples, choices)

    def _features(self, block: str, dims: int | None) -> float:
        if (block, dims) not in self._read:
            found = sketched(combine(self._data.public.pooled[block]), dims, block).double()
            self._read[block, dims] = _rms(centred(found, torch.ones(found.shape[:2], dtype=torch.bool)))
        return self._read[block, dims]

    def _states(self, block: str) -> float:
        if block not in self._typical:
            self._typical[block] = _rms(self._data.public.pooled[block].double())
        return self._typical[block]


def _rms(rows: Tensor) -> float:
    """Root mean square norm of rows ``[..., d]``."""
    return float(rows.square().sum(-1).mean().sqrt())
