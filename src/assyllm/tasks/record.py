"""The one record type of every task: a question with two to five choices (paper section 4.1)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from assyllm.artifacts import ArtifactError, read_lines, write_text

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class Question:
    """A multiple-choice question.

    ``context`` is a passage or ``""``; ``answer`` indexes ``choices``; ``topic`` groups questions for a
    partition by topic; ``facts`` names the facts of the generated world that the answer rests on (empty for
    real tasks), so that test items can be told apart by whether any client's data holds their facts.
    """

    id: str
    context: str
    question: str
    choices: tuple[str, ...]
    answer: int
    topic: str = ""
    facts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= 5:
            raise ArtifactError(f"question {self.id!r}: {len(self.choices)} choices, expected 2 to 5")
        if not 0 <= self.answer < len(self.choices):
            raise ArtifactError(f"question {self.id!r}: answer {self.answer} is not one of its choices")
        try:
            " ".join((self.context, self.question, *self.choices)).encode()
        except UnicodeEncodeError:
            raise ArtifactError(f"question {self.id!r}: half of a surrogate pair, which is no text") from None

    @property
    def about(self) -> str:
        """Entity and facet of its facts (``<form>/<entity>/<facet>``), or its id where it names none.

        Questions about the same thing are right or wrong together.
        """
        pairs = {"/".join(fact.split("/")[1:3]) or fact for fact in self.facts}
        return "+".join(sorted(pairs)) or self.id

    @property
    def stem(self) -> str:
        """The text before the choice: passage, if any, then the question."""
        return f"{self.context} {self.question}".strip()


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Write questions as JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(asdict(q), ensure_ascii=False) + "\n" for q in questions))


def read_questions(path: Path) -> list[Question]:
    """Read JSON lines; a broken line raises :class:`ArtifactError` with file and line number."""
    questions = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            row = json.loads(line)
            row["choices"] = tuple(row["choices"])
            row["facts"] = tuple(row.get("facts", ()))
            questions.append(Question(**row))
        except (ValueError, KeyError, TypeError, ArtifactError) as error:
            raise ArtifactError(f"{path}, line {number}: not a question ({error})") from None
    return questions
