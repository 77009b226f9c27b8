"""Opening one task for a run: its questions, who holds them, and the cached scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assyllm.artifacts import manifest_sha, read_lines, sha256_file
from assyllm.blocks.pool import Pool
from assyllm.comparator.public import cloze_questions
from assyllm.federated.data import TaskData, read_scores
from assyllm.tasks.partition import read_owned
from assyllm.tasks.record import SPLITS, read_questions


def open_task(pool: Pool, task: str, p: Any, tasks: Path, partition: Path, scores: Sequence[Path]) -> TaskData:
    """Read a task's folders.

    Args:
        p: the parsed sections ``tasks``, ``partition`` and ``comparator``.
        scores: the score stage's folders, one per shard.

    Raises:
        ArtifactError: a file is missing or broken, or scores are of another pool, or partition and scores do not
            belong to the task's questions.
    """
    splits = {split: read_questions(tasks / task / f"{split}.jsonl") for split in SPLITS}
    dealt = p.partition
    held = partition / f"{task}.csv"
    owned = read_owned(held, splits["train"], dealt.clients, dealt.items_per_client)
    lines = read_lines(tasks / task / "public.txt")
    public = cloze_questions(lines, p.comparator.public_texts)
    made_of = {"pool": manifest_sha(pool.folder), "partition": sha256_file(held)}
    return read_scores(scores, made_of, task, p.tasks.max_tokens[task], splits, owned, pool.ids, public)
