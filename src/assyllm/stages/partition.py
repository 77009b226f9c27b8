"""Stage ``partition``: deal every task's training items to the clients."""

from __future__ import annotations

from pathlib import Path

from assyllm import params as P
from assyllm.artifacts import ArtifactError, output_folder, verify_folder
from assyllm.results import write_table

SECTIONS = ("tasks", "partition")


def run(params: str, code_sha: str, tasks: Path, seed: int, out: Path) -> None:
    """Write ``<task>.csv`` (client, question) for every task, and ``counts.csv``."""
    from assyllm.tasks.partition import COUNT_COLUMNS, capped, counts, partition, write_owners
    from assyllm.tasks.record import read_questions

    p = P.parse_sections(params, SECTIONS)
    verify_folder(tasks)
    with output_folder(out) as folder:
        table = []
        for task in p.tasks.names:
            questions = read_questions(Path(tasks) / task / "train.jsonl")
            if len(questions) < p.partition.clients:
                held = f"{task} has {len(questions)} training questions"
                raise ArtifactError(f"partition.clients: {p.partition.clients}, but {held}; somebody would have none")
            owners = partition(questions, task, p.partition.clients, p.partition.alpha, p.partition.by, seed)
            owners = capped(owners, p.partition.items_per_client, task, seed)
            write_owners(folder / f"{task}.csv", questions, owners)
            table += counts(questions, owners, task, p.partition.by)
        write_table(folder / "counts.csv", table, columns=COUNT_COLUMNS)
