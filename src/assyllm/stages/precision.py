"""Stage ``precision``: a run's models on pools of other precisions, nothing fitted again."""

from __future__ import annotations

from pathlib import Path

from assyllm.params import parse_sections

SECTIONS = ("tasks",)
COLUMNS = ("method", "task", "seed", "fitted_on", "setting", "pool_bytes", "pool_weights", "model_bytes", "correct")


def run(params: str, code_sha: str, run_folder: Path, pools: list[str], tasks: Path, seed: int, out: Path) -> None:
    """Write ``out``: a row for each task and pool; ``correct`` has a 1 or 0 for each test question in order.

    Args:
        run_folder: an assembling method's run, ``data/runs/<setting>/<method>/zoo<z>_seed<s>``.
        pools: ``<setting>=<folder>`` of each pool whose blocks the models get.

    Raises:
        ArtifactError: a model or pool is missing or altered, or a pool lacks a block.
    """
    p = parse_sections(params, SECTIONS)
    import torch

    from assyllm.artifacts import ArtifactError, verify_folder
    from assyllm.assembly.assembled import AssembledModel
    from assyllm.assembly.precision import correct, replaced, size_bytes
    from assyllm.quantizer.pool import open_pool
    from assyllm.results import write_table
    from assyllm.tasks.record import read_questions

    torch.set_num_threads(1)
    verify_folder(Path(tasks))
    run_folder = Path(run_folder)
    rows = []
    for pair in pools:
        setting, found, folder = pair.partition("=")
        if not found:
            raise ArtifactError(f"--pool {pair}: <setting>=<folder> expected")
        pool = open_pool(Path(folder))
        for task in p.tasks.names:
            model = replaced(AssembledModel.from_pretrained(run_folder / "models" / task), pool)
            hits = correct(model, read_questions(Path(tasks) / task / "test.jsonl"))
            rows.append(
                {
                    "method": run_folder.parent.name, "task": task, "seed": seed,
                    "fitted_on": run_folder.parent.parent.name, "setting": setting,
                    "pool_bytes": pool.bytes, "pool_weights": sum(pool.info(b).parameters for b in pool.ids),
                    "model_bytes": size_bytes(model, pool), "correct": "".join(map(str, hits)),
                }
            )  # fmt: skip
            print(f"precision {setting} {task}: {sum(hits) / len(hits):.3f}", flush=True)
    write_table(out, rows, COLUMNS)
