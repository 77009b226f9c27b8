"""Made-up runs and cost tables in the shapes that the stages write, and the tables that `collect` makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from assyllm import params as P
from assyllm.collect.tables import collect
from assyllm.cost.devices import SECONDS, devices
from assyllm.cost.participation import CURVES
from assyllm.features import POINTS, SCORES
from assyllm.figures import (
    swap_ablation,
    swap_timeline,
)
from assyllm.results import Metric, Prediction, Run, write_rows, write_table

ROOT = Path(__file__).parents[2]
PARAMS = P.load(ROOT / "params.yaml")


REPORTED, CANDIDATES = "llama:0-1 opt:1-2", "llama:1-2 llama:2-3 llama:3-4 opt:1-2 opt:2-3 opt:3-4"


QUALITY = {"majority": 0.3, "ft_practical": 0.5, "ft_oracle": 0.8, "assyllm_paper": 0.7}


def write_run(folder: Path, method: str, setting: str, name: str, seed: int, tasks: tuple[str, ...]) -> Path:
    run_id = f"{name}-{method}-zoo0-seed{seed}"
    draw = np.random.default_rng([seed, *map(ord, method + setting)])
    common = {"run_id": run_id, "method": method, "seed": seed, "setting": setting}
    metrics, predictions, models = [], [], []
    for task in tasks:
        hits = draw.random(80) < QUALITY[method]
        predictions += [
            Prediction(
                **common,
                task=task,
                question=f"q{i}",
                about=f"a{i // 2}",
                seen=str(i % 2),
                chosen=int(h),
                correct=int(h),
            )
            for i, h in enumerate(hits)
        ]
        row = {**common, "task": task, "world": "embedded", "metric": "accuracy"}
        metrics.append(Metric(**row, split="test", value=float(hits.mean())))
        metrics += [Metric(**row, split="test", round=r, value=0.1 * r) for r in (1, 2, 3)]
        counted = {**row, "metric": "participants"}
        metrics += [Metric(**counted, split="", round=r, value=20.0, unit="clients") for r in range(1, 21)]
        if method.startswith("ft_"):
            metrics.append(
                Metric(**{**row, "metric": "best_round"}, split="", value=20.0 if "oracle" in method else 10.0)
            )
        if method == "assyllm_paper":
            models += [
                {
                    **common, "task": task, "model": i, "blocks": REPORTED, "n_blocks": 2 + i % 3,
                    "families": "llama opt", "size_bytes": 10**6 * (i + 1), "compatibility": 0.5 + 0.1 * i,
                    "trained_joins": int(i == 3), "accuracy_dev": 0.5, "accuracy_test": 0.6, "reported": int(i == 3),
                    "source": "measured",
                }
                for i in range(4)
            ]  # fmt: skip
    if models:
        row = {"run_id": run_id, "clients": 20, "candidates": "", "phase": "head", "chain": REPORTED}
        rounds = [row | {"phase": "select", "chain": "llama:0-1", "candidates": CANDIDATES}, row, row]
        walk = [entry | {"task": task, "round": i} for task in tasks for i, entry in enumerate(rounds, start=1)]
        write_table(folder / "walk.csv", walk)
    run = Run(
        run_id=run_id, method=method, tasks=" ".join(tasks), world="embedded", models="llama", weights_sha="0",
        budget="none", alpha=1.0, seed=seed, params_sha="0", code_sha="0", setting=setting, device="cpu",
    )  # fmt: skip
    write_rows(folder / "run.csv", Run, [run])
    write_rows(folder / "metrics.csv", Metric, metrics)
    write_rows(folder / "predictions.csv", Prediction, predictions)
    write_table(folder / "timings.csv", [{"run_id": run_id, "what": "round", "value": 0.1, "unit": "s"}])
    if models:
        write_table(folder / "models.csv", models)
    return folder


# made-up peaks (GB) of Llama-7B and OPT-6.7B; what the cost model says is tested in test_cost.py
PEAKS = {
    "ft_oracle": (38.0, 27.0), "ft_practical": (38.0, 27.0), "qlora": (25.0, 20.0), "recomputation": (2.5, 2.2),
    "swapping": (3.2, 3.0), "assyllm_paper": (1.9, 2.3),
}  # fmt: skip


def write_cost(folder: Path, method: str) -> tuple[Path, Path]:
    """A method's cost table and curves in the shape that stage ``cost`` writes."""
    names = ("parameters", "gradients", "activations", "optimizer", "temporary")
    rows, curves = [], []
    shapes = {"llama": "llama-7b", "vicuna": "vicuna-7b", "opt": "opt-6.7b", "pool": "largest member"}
    for model, shape in shapes.items():
        peak = PEAKS[method][model in ("opt", "pool")]
        made = {"peak_gb": peak, **{f"{n}_gb": peak / 5 for n in names}, "workspace_gb": 0.0, "tflop": 160.0}
        made |= {"stored_gb": 0.0, "up_gb": 13.2, "down_gb": 13.2}
        made |= {f"{SECONDS}{name}": 100.0 + peak for name in devices()}
        for memory, share in PARAMS.fleet.memory_gb.items():
            fits = int(peak + 0.5 <= memory or method == "ft_oracle")
            common = {"method": method, "model": model, "stands_for": shape, "memory_gb": memory, "share": share}
            common |= {"batch": 16, "tokens": 256, "optimizer": "sgd", "pool_bits": 8.5}
            common |= {"targets": "query_value", "rank": 8} if method == "qlora" else {"targets": "", "rank": ""}
            rows.append({**common, **made, "participates": fits, "source": "modelled"})
        for varies, values in (
            ("tokens", (128, 256)),
            ("batch", (1, 16)),
            ("optimizer", ("sgd", "adamw")),
            ("bits", (4, 8)),
        ):
            for value in values if model == "llama" else ():
                row = {"method": method, "stands_for": shape, "varies": varies, "batch": 16, "tokens": 256}
                row |= {"optimizer": "sgd", "bytes_per_weight": 2, "bits": 8, "resident_blocks": 2, varies: value}
                curves.append({**row, **made, "smallest_gb": 4, "participation": 1.0, "source": "modelled"})
    write_table(folder / f"{method}.csv", rows)
    write_table(folder / f"{method}.curves.csv", curves, CURVES)
    return folder / f"{method}.csv", folder / f"{method}.curves.csv"


def write_swap_tables(out: Path) -> None:
    """Made-up tables of the swapper: three layers, each pipeline a second faster than the one before."""
    events, times, reads = [], [], []
    for slow, pipeline in zip((4, 3, 2, 1), swap_timeline.PIPELINES, strict=True):
        for i, unit in enumerate(("0", "1", "after")):
            for kind, start in (("load", 0.0), ("wait", 0.0), ("compute", 0.5)):
                common = {"pipeline": pipeline, "kind": kind, "unit": unit, "bytes": 10, "resident_bytes": 20}
                times_of = {"start": slow * (i + start), "end": slow * (i + start + 0.5)}
                events.append(common | times_of | {"source": "measured"})
        for passes in (1, 2):
            row = {"what": "time", "pipeline": pipeline, "policy": "lru", "passes": passes, "swaps": 3 * passes}
            row |= {"seconds": 3.0 * slow * passes, "compute_seconds": 1.0, "read_seconds": 1.5, "source": "measured"}
            times.append(row)
    for policy in swap_ablation.POLICIES:
        row = {"what": "reads", "order": "candidate", "budget_share": 0.5, "policy": policy, "bytes": 12}
        reads.append(row | {"least_bytes": 10, "source": "modelled"})
    columns = list(dict.fromkeys([*times[0], *reads[0]]))
    write_table(out / "swap_timeline.csv", events)
    write_table(out / "swap_ablation.csv", [dict.fromkeys(columns, "") | row for row in (*times, *reads)], columns)


def write_feature_tables(out: Path) -> None:
    """Made-up layers: two pairs of models of two layers, three finished chains a task, of which two are shown."""
    points, scores = [], []
    for pair in ("opt llama", "opt roberta"):
        common = dict.fromkeys(POINTS, "") | {"pair": pair, "source": "measured"}
        points += [common | {"what": "cka", "model": "opt", "layer": 1, "other": j, "value": 0.25 * j} for j in (1, 2)]
        for space in ("columns", "cosines"):
            for i, model in enumerate(pair.split()):
                points += [
                    common | {"what": "point", "space": space, "model": model, "layer": n % 2 + 1, "example": n // 2,
                              "x": n, "y": i}
                    for n in range(8)
                ]  # fmt: skip
    for task in ("boolq", "piqa", "openbookqa"):
        for i in range(3):
            chain = f"opt:0-1 llama:{i}-{i + 1}"
            common = dict.fromkeys(SCORES, "") | {"world": "embedded", "task": task, "model": chain, "seed": 0}
            common |= {"candidate": chain.split()[1], "shown": i if task == "piqa" and i else "", "source": "measured"}
            scores.append(
                common | {"what": "model", "cka": i / 4, "cor": 0.9, "compatibility": 0.5, "accuracy": 0.5 + i / 10,
                          "reported_compatibility": 1 - i / 4, "trained_joins": 0}
            )  # fmt: skip
            if common["shown"]:
                scores += [common | {"what": "cell", "row": r, "column": c, "cka": 0.5} for r in (1, 2) for c in (1, 2)]
        scores.append(  # a model with trained joins is in no correlation
            common | {"what": "model", "shown": "", "cka": 0, "cor": 0.9, "compatibility": 0.5, "accuracy": 1,
                      "reported_compatibility": 1, "trained_joins": 1}
        )  # fmt: skip
    write_table(out / "feature_differences.csv", points, POINTS)
    write_table(out / "compatibility_heatmaps.csv", scores, SCORES)


def write_results(folder: Path) -> Path:
    """All tables of a made-up study below ``folder``; returns their own folder."""
    tasks = ("boolq", "piqa", "openbookqa")
    runs = [write_run(folder / f"{m}{s}", m, "", "base", s, tasks) for m in QUALITY for s in (0, 1)]
    for method in ("ft_oracle", "ft_practical"):
        runs.append(write_run(folder / f"opt{method}", method, 'baselines.model="opt"', "opt", 0, tasks))
    tables, curves = zip(*(write_cost(folder, method) for method in PEAKS), strict=True)
    hits = ["".join(str(int(h)) for h in np.random.default_rng(i).random(80) < 0.7) for i in range(3)]
    curve = [
        {
            "method": "assyllm_paper", "task": task, "seed": 0, "fitted_on": "fp16", "setting": setting,
            "pool_bytes": size, "pool_weights": 1000, "model_bytes": 300, "correct": hits[place],
        }
        for task in tasks
        for place, (setting, size) in enumerate([("fp16", 2000), ("base", 700), ("int4", 600)])
    ]  # fmt: skip
    write_table(folder / "precision" / "zoo0_seed0.csv", curve)
    precision = [folder / "precision" / "zoo0_seed0.csv"]
    collect("default", runs, list(tables), PARAMS, folder / "results", list(curves), precision)
    write_swap_tables(folder / "results")
    write_feature_tables(folder / "results")
    return folder / "results"
