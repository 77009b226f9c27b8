"""Stage ``swap``: the swapper's pipelines timed, its policies counted on a run's own walk: two figure tables."""

from __future__ import annotations

from pathlib import Path

from assyllm.params import parse_sections

SECTIONS = ("swap",)


def run(params: str, code_sha: str, pool: Path, walked: Path, scores: list[Path], out: Path) -> None:
    """Write ``swap_timeline.csv`` and ``swap_ablation.csv`` into ``out``; seconds in them differ from run to run.

    Args:
        pool: for the order and the models of its blocks.
        walked: a run folder of the study, for its ``walk.csv``.
        scores: the score stage's folders of the same zoo and seed; their CKA of blocks is the paper's correlation.
    """
    p = parse_sections(params, SECTIONS)
    import torch

    from assyllm.artifacts import ArtifactError, read_json, verify_folder
    from assyllm.blocks.pool import POOL
    from assyllm.comparator.native import correlations
    from assyllm.cost.units import unit_bytes
    from assyllm.results import write_table
    from assyllm.swapper.ablation import pipelines, reads
    from assyllm.swapper.plan import block_of
    from assyllm.swapper.walks import read_walk

    torch.set_num_threads(1)
    for folder in (walked, *scores):
        verify_folder(Path(folder))
    raw = read_json(Path(pool) / POOL)
    sizes = unit_bytes({name: raw["models"][name] for name in raw["order"]})
    blocks = list(dict.fromkeys(block_of(unit) for unit in sizes))
    rounds = read_walk(Path(walked) / "walk.csv")
    counted = []
    for task in dict.fromkeys(each.task for each in rounds):
        mine = [each for each in rounds if each.task == task]
        related = correlations([Path(folder) / f"{task}.safetensors" for folder in scores], blocks)
        counted += [{"task": task, **row} for row in reads(mine, sizes, p.swap.budget_shares, related)]
    if not counted:
        raise ArtifactError("swap.budget_shares: none of them holds what must be in memory at once; larger ones")
    events, times = pipelines(p.swap)
    columns = list(dict.fromkeys([*times[0], *counted[0]]))
    rows = [{"what": "time", **row} for row in times] + [{"what": "reads", **row} for row in counted]
    write_table(Path(out) / "swap_timeline.csv", events)
    write_table(
        Path(out) / "swap_ablation.csv",
        [dict.fromkeys(columns, "") | row for row in rows],
        ["what", *columns],
    )
