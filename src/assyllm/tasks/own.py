"""A task of one's own as JSON lines: question, two to five choices, answer; context, topic and id if there are any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assyllm.tasks.record import Question
from assyllm.tasks.topic import first_content_word

HUB = None
TEST = ("test",)


def question(row: Mapping[str, Any], identity: str) -> Question:
    """A row with question, choices (2 to 5 texts) and answer (an index into them); context, topic, id if given.

    Raises:
        ValueError: a field is missing or of the wrong kind; the message names it.
        ArtifactError: too few or too many choices, or an answer that is none of them.
    """
    for name in ("question", "choices", "answer"):
        if name not in row:
            raise ValueError(f"{name} is missing; there are {', '.join(map(str, row)) or 'no fields'}")
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("question must be a text")
    choices = row.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise ValueError("choices must be a list of texts")
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise ValueError("answer must be a whole number, the index of a choice (the first is 0)")
    context = row.get("context") or ""
    if not isinstance(context, str):
        raise ValueError("context must be a text")
    stem = " ".join(text.split())
    return Question(
        id=identity if row.get("id") in (None, "") else str(row["id"]),
        context=" ".join(context.split()),
        question=stem,
        choices=tuple(" ".join(choice.split()) for choice in choices),
        answer=answer,
        topic=str(row.get("topic") or first_content_word(stem)),
    )
