"""OpenBookQA: elementary science, four choices (Mihaylov 2018). The topic is the first content word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assyllm.tasks.record import Question
from assyllm.tasks.topic import first_content_word

HUB = ("allenai/openbookqa", "main", "388097ea7776314e93a529163e0fea805b8a6454")  # id, configuration, revision
TEST = ("test",)
LETTERS = "ABCD"


def question(row: Mapping[str, Any], identity: str) -> Question:
    """A row as published (question_stem, choices.text, answerKey) or flat (question, choices, answer 0-3).

    Raises:
        ValueError: a field is missing or of the wrong kind; the message names it.
    """
    stem = row.get("question_stem") or row.get("question")
    if not isinstance(stem, str):
        raise ValueError("question must be a text")
    choices = row.get("choices")
    if isinstance(choices, Mapping):
        choices = choices.get("text")
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(c, str) for c in choices):
        raise ValueError("choices must be four texts")
    answer = row.get("answer")
    if answer is None and isinstance(row.get("answerKey"), str):
        answer = LETTERS.find(row["answerKey"].strip())
    if isinstance(answer, bool) or answer not in (0, 1, 2, 3):
        raise ValueError("answer must be 0 to 3 (or answerKey A to D)")
    stem = " ".join(stem.split())
    return Question(
        id=identity if row.get("id") in (None, "") else str(row["id"]),
        context="",
        question=stem,
        choices=tuple(" ".join(choice.split()) for choice in choices),
        answer=int(answer),
        topic=first_content_word(stem),
    )
