"""Stage ``federate``: AssyLLM's rounds on every task, and the models that come out."""

from __future__ import annotations

from pathlib import Path

from assyllm.params import params_sha, parse_sections

SECTIONS = ("tasks", "partition", "comparator", "assembling", "federated", "fleet", "swapper")
CODE = ("params/names.py", "params/assembling.py")  # beside what is imported (study.code_sha)


def run(
    params: str,
    code_sha: str,
    method: str,
    setting_name: str,
    setting: str,
    pool: Path,
    tasks: Path,
    partition: Path,
    scores: list[Path],
    cost: Path,
    zoo_seed: int,
    seed: int,
    checkpoint: Path | None,
    out: Path,
) -> None:
    """Write the run folder ``out``: tables, and for each task ``models/<task>/`` with its ``recipe.yaml``.

    A run that was killed goes on from its last round if params, code and inputs are the same.
    """
    p = parse_sections(params, SECTIONS)
    import shutil

    import torch

    from assyllm.artifacts import ArtifactError, manifest_sha, output_folder, sha256_file, sha256_text, verify_folder
    from assyllm.blocks.untrained import UntrainedPool
    from assyllm.checkpoint import Checkpoint
    from assyllm.comparator.native import correlations
    from assyllm.federated.cohort import device_memory, eligible_clients
    from assyllm.federated.context import Settings
    from assyllm.federated.outcome import Outcome, outcome, write_run
    from assyllm.federated.rounds import Rounds
    from assyllm.federated.state import State
    from assyllm.federated.task import open_task
    from assyllm.federated.walk_table import COLUMNS, walk_rows
    from assyllm.quantizer.pool import open_pool
    from assyllm.results import write_table
    from assyllm.swapper.swapper import lend

    own = p.assembling.of(method)
    if method == "untrained_blocks" and own.adapter.fitted and own.selection.joins:
        raise ArtifactError(
            f"assembling.assyllm.adapter.kind: {own.adapter.kind} is fitted to the states of trained blocks, so it "
            "does not go with untrained_blocks"
        )
    torch.set_num_threads(1)
    for folder in (tasks, *scores):
        verify_folder(Path(folder))
    opened = open_pool(Path(pool), keep=p.swapper.budget_gb is None)
    if method == "untrained_blocks":
        opened = UntrainedPool(Path(pool), zoo_seed)
    else:
        asked = scores if p.swapper.policy == "lru_correlation" and p.swapper.budget_gb is not None else []
        files = [Path(folder) / f"{p.tasks.names[0]}.safetensors" for folder in asked]
        opened = lend(opened, p.swapper, correlations(files, opened.ids) if files else None)
    inputs = [manifest_sha(Path(folder)) for folder in (pool, tasks, *scores)]
    inputs += [sha256_file(Path(partition) / f"{task}.csv") for task in p.tasks.names]
    eligible = eligible_clients(Path(cost), method, "pool", device_memory(seed, p.fleet, p.partition.clients))
    settings = Settings(own.selection, p.comparator, own.adapter, own.head, p.federated)
    run_id = f"{setting_name}-{method}-zoo{zoo_seed}-seed{seed}"
    key = sha256_text("\n".join([params, code_sha, run_id, sha256_file(Path(cost)), *inputs]))
    outcomes: list[Outcome] = []
    for task in p.tasks.names:
        data = open_task(opened, task, p, Path(tasks), Path(partition), [Path(folder) for folder in scores])
        rounds = Rounds(opened, data, settings, seed, eligible, zoo_seed)
        kept = Checkpoint(checkpoint, task, key)
        stored = kept.load()

        def save(state: State, kept: Checkpoint = kept) -> None:
            kept.save(*state.dump())

        def report(state: State, task: str = task) -> None:
            row = state.rows[-1]
            print(
                f"{task} round {state.round}: {row['participants']} clients, {len(state.open)} chains open, "
                f"{len(state.finished)} finished",
                flush=True,
            )

        state = rounds.run(State.load(*stored) if stored else None, save, report)
        outcomes.append(outcome(opened, data, settings, state, rounds.judged))
    world = "embedded" if p.tasks.source == "world" else "real"
    with output_folder(out, unlisted=("timings.csv",)) as folder:
        write_run(
            folder, outcomes, opened, settings, run_id=run_id, method=method, world=world, seed=seed,
            setting=setting, alpha=p.partition.alpha, weights_sha=manifest_sha(Path(pool))[:12],
            params_sha=params_sha(params), code_sha=code_sha,
        )  # fmt: skip
        walks = [row for o in outcomes for row in walk_rows(run_id, o.data.task, opened, o.state, settings.rule)]
        write_table(folder / "walk.csv", walks, COLUMNS)
    if checkpoint is not None:
        shutil.rmtree(checkpoint, ignore_errors=True)
