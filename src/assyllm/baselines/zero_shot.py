"""Every member of the zoo as it is, scored by likelihood (no training, no client)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from assyllm.evaluate import accuracy
from assyllm.tasks.record import Question
from assyllm.zoo.likelihood import zero_shot


@dataclass(frozen=True, slots=True)
class Answers:
    """One model's choices, by the likelihood that does better on the development split."""

    kind: str  # acc (sum of log-probabilities) | acc_norm (over the choice's characters)
    dev: np.ndarray  # [N]
    test: np.ndarray  # [N]
    both: dict[str, np.ndarray]  # test choices [N] of either kind


def answer(
    model: nn.Module, tokenizer: Any, dev: Sequence[Question], test: Sequence[Question], max_tokens: int
) -> Answers:
    """Score dev and test; pick ``acc`` or ``acc_norm`` on dev (``acc`` at a tie)."""
    on_dev = zero_shot(model, tokenizer, dev, max_tokens)
    on_test = zero_shot(model, tokenizer, test, max_tokens)
    right = [q.answer for q in dev]
    kind = max(sorted(on_dev), key=lambda name: accuracy(on_dev[name], right))
    return Answers(kind, on_dev[kind], on_test[kind], on_test)
