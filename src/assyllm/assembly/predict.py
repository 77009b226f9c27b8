"""A saved model on a file of questions: ``assyllm predict``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from assyllm.artifacts import ArtifactError, read_text
from assyllm.assembly.assembled import AssembledModel
from assyllm.tasks import own
from assyllm.tasks.record import Question

KEYS = {"id", "context", "question", "choices", "answer", "topic", "facts"}
BATCH = 64  # questions of one forward pass


def read_asked(path: Path) -> list[tuple[Question, bool]]:
    """Questions as JSON lines, and whether each came with its answer.

    Read as the questions of a task of one's own are (:mod:`assyllm.tasks.own`): a model sees the text that it was
    fitted on. ``question`` and ``choices`` are needed; ``context``, ``id`` (default: the line's number) and
    ``answer`` (an index into the choices) are not.

    Raises:
        ArtifactError: no such file, no question in it, or a line that is none; file and line number are named.
    """
    asked: list[tuple[Question, bool]] = []
    names: set[str] = set()
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ArtifactError("a mapping is expected")
            unknown = sorted(set(row) - KEYS)
            if unknown:
                raise ArtifactError(f"unknown key {unknown[0]!r}")
            answered = row.get("answer") is not None
            found = own.question(row if answered else row | {"answer": 0}, str(number))
            if found.id in names:
                raise ArtifactError(f"the id {found.id!r} was given before")
            names.add(found.id)
            asked.append((found, answered))
        except (ValueError, TypeError, RecursionError, ArtifactError) as error:
            raise ArtifactError(f"{path}, line {number}: not a question ({error})") from None
    if not asked:
        raise ArtifactError(f"{path}: no questions")
    return asked


def shortened(model: AssembledModel, questions: list[Question]) -> int:
    """How many questions are so long that more than context is lost to the model's ``max_tokens``."""
    return max((encoded.cut for encoded in model.encode(questions).values()), default=0)


def predict(model: AssembledModel, questions: list[Question]) -> list[dict[str, Any]]:
    """One dict a question: id, chosen (index), choice (text), scores (one a choice, higher is better)."""
    found = []
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        for question, scores in zip(part, model(model.encode(part)).tolist(), strict=True):
            real = scores[: len(question.choices)]
            if not all(map(math.isfinite, real)):
                raise ArtifactError(f"question {question.id!r}: the model's scores are not finite")
            chosen = max(range(len(real)), key=lambda c: (real[c], -c))
            choice = question.choices[chosen]
            found.append({"id": question.id, "chosen": chosen, "choice": choice, "scores": [round(s, 6) for s in real]})
    return found
