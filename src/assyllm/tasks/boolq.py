"""BoolQ: yes/no questions about a passage (Clark 2019; CC BY-SA 3.0). The topic is the article's title."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assyllm.tasks.record import Question

HUB = ("google/boolq", None, "35b264d03638db9f4ce671b711558bf7ff0f80d5")  # id, configuration, revision
TEST = ("validation",)  # the published test labels are hidden
CHOICES = ("no", "yes")


def question(row: Mapping[str, Any], identity: str) -> Question:
    """A row with question, passage, answer (bool) and, in some copies, title.

    Raises:
        ValueError: a field is missing or of the wrong kind; the message names it.
    """
    for name in ("question", "passage"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(f"{name} must be a text")
    if not isinstance(row.get("answer"), bool):
        raise ValueError("answer must be true or false")
    title = row.get("title") or row["passage"].partition(" -- ")[0][:80]
    return Question(
        id=identity,
        context=" ".join(row["passage"].split()),
        question=" ".join(row["question"].split()).rstrip("?") + "?",
        choices=CHOICES,
        answer=int(row["answer"]),
        topic=str(title),
    )
