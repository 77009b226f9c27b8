"""Stage ``features``: layers of pairs of models in a plane, layers of assembled chains against a block's own model."""

from __future__ import annotations

from pathlib import Path

from assyllm.params import parse_sections

SECTIONS = ("tasks", "comparator", "assembling", "features")
CODE = ("params/names.py", "params/assembling.py")  # beside what is imported (study.code_sha)


def run(params: str, code_sha: str, pool: Path, tasks: Path, walked: Path, out: Path) -> None:
    """Write ``feature_differences.csv`` and ``compatibility_heatmaps.csv`` into ``out``.

    Args:
        walked: an assembling run of the study, for the models that it finished.
    """
    p = parse_sections(params, SECTIONS)
    import torch

    from assyllm.artifacts import read_lines, verify_folder
    from assyllm.comparator.public import cloze_questions
    from assyllm.features import POINTS, SCORES, PublicRun, point_rows, score_rows
    from assyllm.quantizer.pool import open_pool
    from assyllm.results import read_table, write_table

    torch.set_num_threads(1)
    for folder in (tasks, walked):
        verify_folder(Path(folder))
    opened = open_pool(Path(pool))
    models = read_table(Path(walked) / "models.csv")
    worlds = {row["world"] for row in read_table(Path(walked) / "run.csv")}
    ridge = p.assembling.of(Path(walked).parent.name).adapter.ridge
    shown = p.features.task if p.features.task in p.tasks.names else p.tasks.names[0]
    points, scores = [], []
    for task in p.tasks.names:
        lines = read_lines(Path(tasks) / task / "public.txt")
        questions = cloze_questions(lines, p.features.texts)
        public = PublicRun.read(opened, questions, p.tasks.max_tokens[task], p.comparator)
        mine = [row for row in models if row["task"] == task]
        scores += [row | {"world": min(worlds)} for row in score_rows(public, mine, p.features, ridge, task == shown)]
        if task == shown:
            points = point_rows(public, p.features)
        print(f"features {task}: {len(mine)} models", flush=True)
    write_table(Path(out) / "feature_differences.csv", points, POINTS)
    write_table(Path(out) / "compatibility_heatmaps.csv", scores, SCORES)
