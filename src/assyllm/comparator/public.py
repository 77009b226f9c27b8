"""What the server learns from public text alone: scales for CKA and COR, rows that fit scoring adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assyllm import seeding
from assyllm.blocks.pool import Pool
from assyllm.comparator.activations import native
from assyllm.comparator.cka import column_scale
from assyllm.tasks.record import Question
from assyllm.zoo.encoding import combine, encode


@dataclass(frozen=True, slots=True)
class Public:
    """Native states of every block on public text, and the scales that all clients share."""

    pooled: dict[str, Tensor]  # block -> [N, C, P, d]
    scale: dict[str, Tensor]  # block -> [F], tames outlier dimensions of features
    rms: dict[str, Tensor]  # block -> [layers] root mean square of each layer's states

    def tensors(self) -> dict[str, Tensor]:
        """As one flat dictionary, to be stored."""
        parts = {"pooled": self.pooled, "scale": self.scale, "rms": self.rms}
        return {f"{part}/{block}": tensor for part, by in parts.items() for block, tensor in by.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Public:
        """The inverse of :meth:`tensors`."""
        parts: dict[str, dict[str, Tensor]] = {"pooled": {}, "scale": {}, "rms": {}}
        for name, tensor in tensors.items():
            part, _, block = name.partition("/")
            parts[part][block] = tensor
        return cls(**parts)


def cloze_questions(texts: Sequence[str], number: int, name: str = "public") -> list[Question]:
    """Public lines as questions of the tasks' form: a line's beginning, its next words, and a rival's.

    So the states that adapters are fitted to are read off exactly where the tasks read them. Nothing is
    labelled: the "answer" is the text's own continuation, and no fit uses it. Measured on five joins of unlike
    families and three tasks (accuracy of the chain, mean of 15): rows from 256 such questions .641, one row a
    word of 256 texts aligned by offsets .629, both .629, a cohort's examples alone .612, these questions plus
    the cohort's examples .643 (the default).

    Args:
        texts: the task's public lines; lines of fewer than three words are passed over.
        number: questions to make, lines taken in order and, if they run out, again with other cuts.
    """
    lines = [words for words in (text.split() for text in texts) if len(words) >= 3]
    questions = []
    for n in range(number if lines else 0):
        draw = seeding.rng("cloze", name, n)
        words, rival = lines[n % len(lines)], lines[int(draw.integers(len(lines)))]
        at, other = int(draw.integers(1, len(words))), int(draw.integers(1, len(rival)))
        size = int(draw.integers(1, 4))
        choices = (" ".join(words[at : at + size]), " ".join(rival[other : other + size]))
        questions.append(Question(f"{name}-{n}", "", " ".join(words[:at]), choices, 0))
    return questions


def public_statistics(pool: Pool, questions: Sequence[Question], max_tokens: int) -> Public:
    """Run every model of the pool over public questions once."""
    vectors: dict[str, Tensor] = {}
    scale: dict[str, Tensor] = {}
    rms: dict[str, Tensor] = {}
    for model in pool.models:
        found = native(pool, model, encode(pool.tokenizer(model), questions, max_tokens))
        vectors |= found.pooled
        for block, states in found.pooled.items():
            scale[block] = column_scale(combine(states).flatten(0, 1))
            rms[block] = torch.tensor(found.rms[block], dtype=torch.float64)
    return Public(vectors, scale, rms)
