"""The server's optimizer: what becomes of the clients' average (Reddi 2021, "Adaptive Federated Optimization").

The average's distance to the weights that were sent out counts as a gradient. ``fedavg`` with rate one takes the
average itself (McMahan 2017); ``fedavgm`` adds momentum, ``fedadam`` scales every weight by its own second moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from assyllm.baselines.local import Weights

MOMENTUM, SECOND, EPSILON = 0.9, 0.99, 1e-6


@dataclass(slots=True)
class Server:
    """Settings and moments. A tensor that is new, was gone for a round or has another shape starts with fresh ones."""

    name: str = "fedavg"  # fedavg | fedavgm | fedadam
    rate: float = 1.0
    moments: Weights = field(default_factory=dict)  # "first/<name>", "second/<name>"

    @torch.no_grad()
    def step(self, weights: Weights, average: Weights) -> Weights:
        """The weights after a round.

        Args:
            weights: what the clients were sent.
            average: the mean of what they sent back; where it has other tensors, those are taken as they are.
        """
        if self.name == "fedavg" and self.rate == 1.0:
            return average
        self.moments = {key: kept for key, kept in self.moments.items() if key.partition("/")[2] in average}
        new = {}
        for name, tensor in average.items():
            old = weights.get(name)
            if old is None or old.shape != tensor.shape:
                new[name] = tensor
                continue
            change = tensor - old
            if self.name != "fedavg":
                first = self._moment("first", name, change)
                first.mul_(MOMENTUM).add_(change, alpha=1 - MOMENTUM if self.name == "fedadam" else 1.0)
                change = first
            if self.name == "fedadam":
                second = self._moment("second", name, change)
                second.mul_(SECOND).addcmul_(tensor - old, tensor - old, value=1 - SECOND)
                change = first / (second.sqrt() + EPSILON)
            new[name] = old + self.rate * change
        return new

    def _moment(self, kind: str, name: str, like: Tensor) -> Tensor:
        key = f"{kind}/{name}"
        if key not in self.moments or self.moments[key].shape != like.shape:
            self.moments[key] = torch.zeros_like(like)
        return self.moments[key]
