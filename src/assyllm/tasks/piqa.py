"""PIQA: which of two solutions reaches a goal (Bisk 2020; AFL 3.0). Topic: the goal's first content word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assyllm.tasks.record import Question
from assyllm.tasks.topic import first_content_word

# ybisk/piqa itself is a loading script, which `datasets` no longer runs; this is the parquet copy that lm-eval reads
HUB = ("baber/piqa", None, "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1")
TEST = ("validation",)  # the published test labels are hidden


def question(row: Mapping[str, Any], identity: str) -> Question:
    """A row with goal, sol1, sol2 and label (0 or 1).

    Raises:
        ValueError: a field is missing or of the wrong kind; the message names it.
    """
    for name in ("goal", "sol1", "sol2"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"{name} must be a text")
    if isinstance(row.get("label"), bool) or row.get("label") not in (0, 1):
        raise ValueError("label must be 0 or 1")
    goal = " ".join(row["goal"].split())
    return Question(
        id=identity,
        context="",
        question=goal,
        choices=tuple(" ".join(row[name].split()) for name in ("sol1", "sol2")),
        answer=int(row["label"]),
        topic=first_content_word(goal),
    )
