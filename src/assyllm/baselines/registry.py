"""Fine-tuning methods by name: how each is built on a model. A further method is one more entry and one file."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from assyllm.baselines.full import FullFineTuning
from assyllm.baselines.method import Method

METHODS: dict[str, Callable[[nn.Module], Method]] = {
    "ft_oracle": FullFineTuning,
    "ft_practical": FullFineTuning,
}
