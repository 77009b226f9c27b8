"""The majority class: the most frequent answer of the clients' training data, given to every question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from assyllm.evaluate import majority
from assyllm.tasks.record import Question


def choose(train: Sequence[Question], questions: Sequence[Question]) -> np.ndarray:
    """Choices [N]: the training answers' majority (the last choice where a question has fewer)."""
    answer = majority(question.answer for question in train)
    return np.array([min(answer, len(q.choices) - 1) for q in questions], dtype=np.int64)
