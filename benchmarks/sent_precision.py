"""Does it matter that what devices send is counted at 4 bytes a number, and computed here in float64?

Repeats runs of a finished study with every client's sums (survey, probes, heads, adapters, HSIC terms) rounded to
float32 on their way to the server, and holds models and accuracies against those of the study. Example:

    python benchmarks/sent_precision.py --methods assyllm assyllm_paper --seeds 0 1 --out benchmarks/sent_precision.csv
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assyllm import params as P
from assyllm.adapter.linear import LinearSums
from assyllm.assembly.head import HeadSums
from assyllm.assembly.recipe import Recipe
from assyllm.comparator.cka import HsicTerms
from assyllm.federated import simulate, task, voting
from assyllm.federated.messages import CandidateSums, ScoreReply
from assyllm.results import read_table, write_table
from assyllm.stages import federate

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """What arrives of a tensor, in which the server computes on."""
    return tensor.to(dtype).double()


def send_at(dtype: torch.dtype) -> None:
    """Round what leaves a device, from now on."""
    each, score, opened = simulate.CohortHeadSums.each, voting.score_cohort, task.open_task

    def head_total(self: Any, without: Sequence[int] = ()) -> HeadSums:
        sent = [
            HeadSums(*(rounded(p, dtype) for p in own.parts())) for c, own in each(self).items() if c not in without
        ]
        return sum(sent, start=HeadSums.zeros(self.x.shape[-1]))

    def part(own: CandidateSums) -> CandidateSums:
        xy, xx, yy = (
            rounded(torch.from_numpy(term), dtype).numpy() for term in (own.hsic.xy, own.hsic.xx, own.hsic.yy)
        )
        adapter = own.adapter and LinearSums(*(rounded(p, dtype) for p in own.adapter.parts()))
        return CandidateSums(HsicTerms(xy, xx, yy, own.hsic.rows), adapter)

    def replies(*asked: Any) -> list[ScoreReply]:
        return [replace(r, sums={key: part(own) for key, own in r.sums.items()}) for r in score(*asked)]

    def first_round(*asked: Any) -> Any:
        data = opened(*asked)
        data.hsic = rounded(torch.from_numpy(data.hsic), dtype).numpy()
        return data

    simulate.CohortHeadSums.total = head_total  # type: ignore[method-assign]
    voting.score_cohort, task.open_task = replies, first_round  # type: ignore[assignment]


def accuracies(run: Path) -> dict[str, float]:
    """Task -> the reported test accuracy."""
    rows = [row for row in read_table(run / "metrics.csv") if row["metric"] == "accuracy" and row["split"] == "test"]
    return {row["task"]: float(row["value"]) for row in rows if not row["round"] and not row["client"]}


def main() -> None:
    """Command line."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--data", type=Path, default=Path("data"), help="of a finished default study")
    ask.add_argument("--methods", nargs="+", default=["assyllm"])
    ask.add_argument("--seeds", nargs="+", type=int, default=[0])
    ask.add_argument("--dtype", choices=DTYPES, default="float32")
    ask.add_argument("--out", type=Path, required=True)
    args = ask.parse_args()
    send_at(DTYPES[args.dtype])
    params = P.sections_json(P.load(Path("params.yaml")), federate.SECTIONS)
    rows = []
    for method in args.methods:
        for seed in args.seeds:
            study = args.data / f"runs/base/{method}/zoo0_seed{seed}"
            with tempfile.TemporaryDirectory() as made:
                run = Path(made) / "run"
                federate.run(
                    params, args.dtype, method, "base", "", args.data / "quantized/base/zoo0",
                    args.data / "tasks/base", args.data / f"partition/base/seed{seed}",
                    sorted((args.data / f"scores/base/zoo0_seed{seed}").iterdir()),
                    args.data / f"cost/base/{method}.csv", 0, seed, None, run,
                )  # fmt: skip
                here, there = accuracies(run), accuracies(study)
                for name, value in here.items():
                    blocks = [Recipe.read(folder / f"models/{name}/recipe.yaml").blocks for folder in (run, study)]
                    rows.append({
                        "method": method, "seed": seed, "task": name, "sent": args.dtype, "test": value,
                        "test_study": there[name], "same_blocks": int(blocks[0] == blocks[1]), "source": "measured",
                    })  # fmt: skip
    write_table(args.out, rows)


if __name__ == "__main__":
    main()
