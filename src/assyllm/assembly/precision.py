"""A saved model with its blocks replaced by another pool's, adapters and head as they are: precision without a re-fit.

Closed-form parts fitted on quantized blocks make up for much of what quantizing costs, so a run on a quantized pool
hides the loss; this shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from assyllm.artifacts import ArtifactError
from assyllm.assembly.assembled import AssembledModel
from assyllm.blocks.pool import Pool
from assyllm.tasks.record import Question


def replaced(model: AssembledModel, pool: Pool) -> AssembledModel:
    """The model on the blocks of another pool of the same zoo.

    Raises:
        ArtifactError: the pool lacks one of the model's blocks.
    """
    names = model.recipe.blocks
    missing = [name for name in names if name not in pool.ids]
    if missing:
        raise ArtifactError(f"{pool.folder}: no block {missing[0]!r}, which the model of {model.recipe.task} has")
    joined = dict(model.adapters.items())
    adapters: list[Any] = [joined.get(str(i)) for i in range(len(names))]
    blocks = [pool.block(name) for name in names]
    embeddings = {name: pool.embedding(name) for name in model.embeddings}
    return AssembledModel(blocks, adapters, model.head, model.recipe, model.tokenizers, embeddings).eval()


def correct(model: AssembledModel, questions: Sequence[Question]) -> list[int]:
    """1 for each question answered rightly, else 0."""
    chosen = model.predict(questions)
    return [int(choice == question.answer) for choice, question in zip(chosen, questions, strict=True)]


def size_bytes(model: AssembledModel, pool: Pool) -> int:
    """Bytes of the model's tensors on ``pool``: blocks, embeddings that adapters read, adapters and head."""
    own = sum(tensor.nbytes for tensor in model.fitted().values())
    started = {pool.info(name).model for name in model.recipe.blocks if pool.info(name).kind == "start"}
    read = sum(pool.embedding_bytes(name) for name in model.embeddings if name not in started)
    return own + read + sum(pool.info(name).bytes for name in model.recipe.blocks)
