"""Runs become tables: completeness, intervals, paired differences, verdicts, figures with stable bytes."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from assyllm import params as P
from assyllm.artifacts import ArtifactError
from assyllm.claims.rows import _ablations
from assyllm.claims.shown import all_claims, swap_claims
from assyllm.claims.table import Claims, Kind, verdict
from assyllm.collect import (
    ABLATIONS,
    NON_IID,
    ablation_table,
    collect,
    condensed,
    paper_values,
    round_table,
    subjects,
    told_apart,
    zoo_table,
)
from assyllm.cost.participation import CURVES
from assyllm.cost.resources import RESOURCES, ROWS_PER_CHOICE
from assyllm.features import POINTS, SCORES
from assyllm.figures import (
    compatibility_heatmaps,
    feature_differences,
    reads,
    robustness,
    style,
    swap_ablation,
    swap_timeline,
    tradeoff,
)
from assyllm.figures.tables import Tables
from assyllm.results import Metric, Prediction, Run, read_table, write_rows, write_table
from assyllm.stages import figure

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
        made |= {
            "stored_gb": 0.0,
            "up_gb": 13.2,
            "down_gb": 13.2,
            "device": "tx2",
            "step_s": 100.0 + peak,
            "step_j": 1e3,
        }
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


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collect")
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


def test_rank_correlations_are_of_a_score_with_accuracy(results: Path) -> None:
    df = compatibility_heatmaps.data(Tables(results))
    ranks = df[df["what"] == "rank correlation"].set_index(["task", "row"])["cka"]
    assert ranks["piqa", "cka"] == pytest.approx(1)
    assert ranks["piqa", "reported_compatibility"] == pytest.approx(-1)
    assert "0.38 (0.25 to 0.50)" in feature_differences.alike(Tables(results).feature_differences)


def test_the_swap_figures_say_what_was_saved(results: Path) -> None:
    df = swap_ablation.data(Tables(results))
    assert swap_ablation.saved(df) == (pytest.approx(25), pytest.approx(100 / 3))
    assert set(df[df["what"] == "reads"]["value"]) == {1.2}
    assert df[df["what"] == "time"]["limit"].unique().tolist() == [1.5]
    shown = swap_timeline.data(Tables(results))
    assert shown["start"].max() < 12
    assert set(shown["pipeline"]) == set(swap_timeline.PIPELINES)


def test_accuracy_has_its_interval_and_counts(results: Path) -> None:
    rows = {(r["task"], r["method"], r["setting"], r["split"]): r for r in read_table(results / "accuracy.csv")}
    row = rows["boolq", "ft_oracle", "", "test"]
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    assert (row["runs"], row["examples"], row["main"]) == ("2", "80", "1")
    assert rows["boolq", "ft_oracle", "", "test_seen"]["examples"] == "40"
    assert rows["boolq", "ft_oracle", 'baselines.model="opt"', "test"]["main"] == "0"


def test_differences_are_paired_and_signed(results: Path) -> None:
    rows = {(r["task"], r["method"], r["versus"]): r for r in read_table(results / "differences.csv")}
    row, other = rows["boolq", "ft_practical", "ft_oracle"], rows["boolq", "ft_oracle", "ft_practical"]
    assert float(row["low"]) < float(row["difference"]) < 0
    assert [float(row[key]) for key in ("difference", "low", "high")] == [
        -float(other[key]) for key in ("difference", "high", "low")
    ]


def test_accuracy_against_bytes_is_paired_with_the_models_as_fitted(results: Path) -> None:
    rows = read_table(results / "quantizer.csv")
    found = {(r["precision"], r["task"], r["refit"]): r for r in rows if r["what"] == "accuracy"}
    exact, base = found["fp16", "piqa", "0"], found["base", "piqa", "0"]
    assert (float(exact["difference"]), float(exact["bits"]), float(base["bits"])) == (0, 16, 5.6)
    assert float(base["difference"]) == pytest.approx(float(base["mean"]) - float(exact["mean"]))
    assert float(base["difference_low"]) < float(base["difference"]) < float(base["difference_high"])
    assert found["base", "piqa", "1"]["runs"] == "1"  # of two seeds re-fitted, one has its counterpart
    sizes = {r["precision"]: r for r in rows if r["what"] == "size"}
    assert float(sizes["FP16"]["size_gb"]) == pytest.approx(41.2, abs=0.05)
    mix = sizes["paper's mix of INT4 and INT8, 4.77 bits"]
    assert float(mix["size_gb"]) <= 12.4
    assert mix["source"] == "modelled"


def test_model_sizes_are_the_true_ones(results: Path) -> None:
    rows = {(r["model"], r["part"]): r for r in read_table(results / "model_sizes.csv")}
    for model, value in (("llama", 13.48), ("opt", 13.32), ("bert", 0.218), ("roberta", 0.709)):
        assert float(rows[model, "model"]["fp16_gb"]) == pytest.approx(value, rel=0.002)
    assert sum(part.startswith("block") for _, part in rows) == 28
    for model in PARAMS.zoo.models:
        parts = [float(r["fp16_gb"]) for (m, part), r in rows.items() if m == model and part != "model"]
        assert sum(parts) == pytest.approx(float(rows[model, "model"]["fp16_gb"]))


def test_resources_are_rounds_times_steps(results: Path) -> None:
    rows = {(r["task"], r["method"]): r for r in read_table(results / "resources.csv")}
    assert set(rows["boolq", "ft_oracle"]) == set(RESOURCES)
    oracle, practical = rows["boolq", "ft_oracle"], rows["boolq", "ft_practical"]
    batches = 3  # 9,427 items of 200 clients in batches of 16
    epochs = PARAMS.baselines.ft_oracle["boolq"].local_epochs
    assert (oracle["rounds"], oracle["rounds_from"]) == ("20", "best_round")
    assert float(oracle["hours"]) == pytest.approx(20 * batches * epochs * 138.0 / 3600)
    assert float(oracle["traffic_gb"]) == pytest.approx(20 * 26.4)
    assert float(practical["speedup"]) == 1
    ours = rows["boolq", "assyllm_paper"]
    assert ours["rounds_from"] == "all rounds"
    # both models as they are (with the chain and its natural continuation), the other candidates on the chain, two
    # rounds of the head; OPT's layers compute nearly what Llama's do; joins come on top
    walks = (1 + 1) + (0.5 + 0.75) + 2 * (0.25 + 0.25)
    walked = batches * walks * ROWS_PER_CHOICE["boolq"]
    assert walked < float(ours["steps"]) < 1.08 * walked
    assert float(ours["traffic_gb"]) < 0.5 * float(oracle["traffic_gb"])


def test_an_incomplete_run_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "majority", "", "base", 0, ("boolq",))
    text = (run / "run.csv").read_text().replace(",boolq,", ",boolq piqa,")
    (run / "run.csv").write_text(text)
    with pytest.raises(ArtifactError, match="base-majority-zoo0-seed0: no test accuracy for piqa"):
        collect("default", [run], [], PARAMS, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_what_no_client_can_run_has_no_accuracy(tmp_path: Path) -> None:
    """Its first weights' answers, all the first choice, are kept with the run and judged nowhere."""
    tasks = ("boolq", "piqa")
    runs = [
        write_run(tmp_path / f"{m}{s}", m, "", "base", s, tasks) for m in ("ft_oracle", "ft_practical") for s in (0, 1)
    ]
    for run in runs:
        rows = read_table(run / "metrics.csv")
        for task in tasks:
            none = "practical" in run.name and task == "boolq"
            known = next(row for row in rows if row["task"] == task and row["metric"] == "best_round")
            rows.append({**known, "metric": "eligible_clients", "value": "0" if none else "20"})
        write_table(run / "metrics.csv", rows)
    tables, curves = zip(*(write_cost(tmp_path, m) for m in ("ft_oracle", "ft_practical")), strict=True)
    collect("default", runs, list(tables), PARAMS, tmp_path / "results", list(curves))
    for name in ("accuracy", "differences", "rounds"):
        found = {(row["method"], row["task"]) for row in read_table(tmp_path / "results" / f"{name}.csv")}
        assert ("ft_practical", "boolq") not in found
    assert {
        row["task"] for row in read_table(tmp_path / "results" / "accuracy.csv") if row["method"] == "ft_practical"
    } == {"piqa"}
    kept = [row for row in read_table(tmp_path / "results" / "metrics.csv") if row["task"] == "boolq"]
    assert sum(row["method"] == "ft_practical" and row["metric"] == "accuracy" for row in kept) == 2 * 4
    for claim in read_table(tmp_path / "results" / "claims.csv"):
        if "practical" in claim["claim"] and "boolq" in claim["claim"] and claim["source"] == "measured":
            assert claim["verdict"] == "not yet measured"


@pytest.mark.parametrize(
    ("paper", "ours", "interval", "kind", "expected"),
    [
        (18.0, 20.0, (15.0, 25.0), "effect", "reproduced"),
        (18.0, 14.0, (10.0, 20.0), "effect", "reproduced"),
        (18.0, 5.0, (1.0, 9.0), "effect", "reproduced in direction"),
        (18.0, 5.0, (-1.0, 9.0), "effect", "not reproduced"),
        (18.0, -5.0, (-9.0, -1.0), "effect", "not reproduced"),
        (-13.0, -14.0, (-20.0, -9.0), "effect", "reproduced"),
        (18.0, None, None, "effect", "not yet measured"),
        (1.1, 1.3, None, "at most", "reproduced"),
        (1.1, 1.5, None, "at most", "not reproduced"),
        (1.1, -2.0, None, "at most", "reproduced"),
        (1.1, 1.0, (0.5, 1.3), "at most", "reproduced"),
        (1.1, 1.0, (0.5, 1.5), "at most", "reproduced in direction"),
        (1.1, 1.5, (1.0, 2.0), "at most", "not reproduced"),
        (21.0, 17.0, None, "near", "reproduced"),
        (21.0, 3.5, None, "near", "not reproduced"),
        (42.2, 41.2, None, "equal", "reproduced"),
        (42.2, 60.0, None, "equal", "not reproduced"),
    ],
)
def test_verdicts(
    paper: float, ours: float | None, interval: tuple[float, float] | None, kind: Kind, expected: str
) -> None:
    assert verdict(paper, ours, interval, kind) == expected


def test_claims_say_where_each_number_comes_from(results: Path) -> None:
    rows = {(r["claim"], r["method"]): r for r in read_table(results / "claims.csv")}
    row = rows["Clients excluded from full fine-tuning, llama-7b", "ft_practical"]
    assert (row["our_value"], row["source"], row["verdict"]) == ("90", "modelled", "reproduced")
    speed = rows["Speed-up over swapping, boolq", "assyllm_paper"]
    assert (speed["verdict"], speed["our_value"]) == ("not yet measured", "")  # no such run here
    assert rows["Traffic below full fine-tuning, boolq", "assyllm_paper"]["source"] == "modelled"
    gap = rows["AssyLLM beats FT-practical, boolq", "assyllm_paper"]
    assert float(gap["low"]) < float(gap["our_value"]) < float(gap["high"])
    assert gap["command"] == "snakemake --cores 2 data/runs/base/{assyllm_paper,ft_practical}/zoo0_seed{0,1}"
    assert rows["Size of the pool, FP16", "quantizer"]["verdict"] == "reproduced"
    assert len(paper_values()) == 105


def test_the_paper_s_method_is_judged_before_ours(results: Path) -> None:
    judged: dict[str, list[str]] = {}
    for row in read_table(results / "claims.csv"):
        judged.setdefault(row["claim"], []).append(row["method"])
    both = [methods for methods in judged.values() if len(methods) > 1]
    assert both
    assert all(methods == ["assyllm_paper", "assyllm"] for methods in both)


def test_claims_about_parts_are_the_ablations_differences() -> None:
    row = {"task": "boolq", "method": "assyllm_paper", "difference": -0.04, "difference_low": -0.06}
    rows = [{**row, "difference_high": -0.01, "changed": "comparator.cka_weight=1.0"}]
    rows += [{**row, "difference": "", "changed": "comparator.cka_weight=0.0"}]
    table = Claims(paper_values(), "two runs", "embedded")
    _ablations(table, rows)
    found = {(r["claim"], r["method"]): r for r in table.rows}
    alone = found["CKA alone loses to the mix, boolq", "assyllm_paper"]
    assert (alone["our_value"], alone["low"], alone["high"]) == (4, 1, 6)
    assert alone["verdict"] == "reproduced in direction"
    assert found["COR alone loses to the mix, boolq", "assyllm_paper"]["verdict"] == "not yet measured"


def test_the_swapper_s_claims_are_of_its_longest_run(results: Path) -> None:
    rows = {r["claim"]: r for r in swap_claims(read_table(results / "swap_ablation.csv"), paper_values())}
    assert rows["Local time saved by pre-loading"]["our_value"] == pytest.approx(25)
    assert rows["Local time saved by pre-loading"]["verdict"] == "reproduced"
    assert rows["Local time saved by pre-swapping on top"]["our_value"] == pytest.approx(100 / 3)
    assert rows["Local time saved by pre-swapping on top"]["verdict"] == "reproduced in direction"


def test_what_only_a_sweep_measured_fills_the_claims(results: Path, tmp_path: Path) -> None:
    for name in ("claims", "swap_ablation", "paper"):
        shutil.copy(results / f"{name}.csv", tmp_path)
    before = {(r["claim"], r["method"]): r["our_value"] for r in all_claims(tmp_path)}
    key = ("CKA alone loses to the mix, boolq", "assyllm_paper")
    assert before[key] == ""
    rows = [{**r, "our_value": "3"} for r in read_table(results / "claims.csv")]
    write_table(tmp_path / "ablations" / "claims.csv", rows)
    after = {(r["claim"], r["method"]): r["our_value"] for r in all_claims(tmp_path)}
    assert after[key] == "3"
    write_table(tmp_path / "non_iid" / "claims.csv", [{**r, "our_value": "4"} for r in rows])
    assert {r["our_value"] for r in all_claims(tmp_path) if (r["claim"], r["method"]) == key} == {"4"}  # goes before
    assert {k: v for k, v in after.items() if before[k] != ""} == {k: v for k, v in before.items() if v != ""}
    write_table(tmp_path / "full" / "claims.csv", [{**r, "our_value": "5", "verdict": "of five"} for r in rows[:2]])
    shown = {(r["claim"], r["method"]): r for r in all_claims(tmp_path)}  # more seeds go before the default study's
    assert [
        (shown[r["claim"], r["method"]]["our_value"], shown[r["claim"], r["method"]]["verdict"]) for r in rows[:2]
    ] == [("5", "of five")] * 2
    assert sum(r["verdict"] == "of five" for r in shown.values()) == 2


@pytest.mark.parametrize("name", sorted({*PARAMS.figures.names, *PARAMS.study.full.figures}))
def test_a_figure_reads_its_tables_and_no_others(results: Path, tmp_path: Path, name: str) -> None:
    draws = importlib.import_module(f"assyllm.figures.{name}")
    for table in reads(name):
        shutil.copy(results / f"{table}.csv", tmp_path)
    assert len(draws.data(Tables(tmp_path)))
    for table in reads(name):
        path = (tmp_path / f"{table}.csv").rename(tmp_path / "away")
        with pytest.raises(ArtifactError, match=table):
            draws.data(Tables(tmp_path))
        path.rename(tmp_path / f"{table}.csv")


@pytest.mark.parametrize("shape", ["llama-7b", "opt-6.7b"])
@pytest.mark.parametrize("name", PARAMS.figures.names)
def test_a_figure_of_a_zoo_without_one_of_the_7b_models(results: Path, tmp_path: Path, name: str, shape: str) -> None:
    draws = importlib.import_module(f"assyllm.figures.{name}")
    for table in reads(name):
        rows = read_table(results / f"{table}.csv")
        kept = [row for row in rows if table == "curves" or row.get("stands_for") != shape]  # those are of no zoo
        write_table(tmp_path / f"{table}.csv", kept, list(rows[0]) if rows else ["source"])
    style.apply(PARAMS.figures)
    df = draws.data(Tables(tmp_path))
    plt.close(draws.draw(df, PARAMS.figures) if len(df) else style.nothing(PARAMS.figures))


def test_the_course_over_rounds_is_of_the_base_setting(results: Path) -> None:
    rows = {(r["task"], r["method"], r["round"]): r for r in read_table(results / "rounds.csv")}
    row = rows["boolq", "ft_oracle", "3"]
    assert [float(row[name]) for name in ("mean", "low", "high", "runs")] == pytest.approx([0.3, 0.3, 0.3, 2])
    assert sorted(int(number) for task, method, number in rows if (task, method) == ("boolq", "majority")) == [1, 2, 3]


def test_a_run_that_is_over_keeps_its_last_accuracy() -> None:
    shared = {
        "metric": "accuracy",
        "split": "test",
        "setting": "",
        "task": "boolq",
        "world": "embedded",
        "method": "assyllm",
    }
    runs = {"a": {3: 0.2, 4: 0.4}, "b": {2: 0.5, 3: 0.6}}
    metrics = [
        shared | {"run_id": run, "round": str(n), "value": str(v)}
        for run, course in runs.items()
        for n, v in course.items()
    ]
    found = {row["round"]: (row["mean"], row["runs"]) for row in round_table(metrics)}
    assert found == {3: (pytest.approx(0.4), 2), 4: (pytest.approx(0.5), 2)}  # round 2 is of one run only
    elsewhere = [row | {"setting": "zoo.seed=1"} for row in metrics]  # the base setting on another zoo
    assert round_table(elsewhere) == round_table(metrics)
    assert not round_table([row | {"setting": "partition.alpha=0.1"} for row in metrics])


@pytest.mark.parametrize("name", ["existing_methods", "memory_wall", "algorithm_baselines"])
def test_a_figure_of_methods_that_were_not_run_says_so(results: Path, tmp_path: Path, name: str) -> None:
    for table in results.glob("*.csv"):
        rows = read_table(table)
        kept = [row for row in rows if table.name == "paper.csv" or row.get("method", "majority") == "majority"]
        write_table(tmp_path / table.name, kept, list(rows[0]) if rows else ["method"])
    figure.run(P.sections_json(PARAMS, figure.SECTIONS), "0", name, tmp_path, tmp_path / "drawn")
    assert (tmp_path / "drawn" / f"{name}.png").stat().st_size > 1000
    told = read_table(tmp_path / "drawn" / f"{name}.csv")
    assert not [row for row in told if row["source"] == "modelled"]


@pytest.mark.parametrize("name", ["robustness", "non_iid", "assembled_models"])
def test_a_figure_of_what_a_study_did_not_vary_says_so(results: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(results / "accuracy.csv", tmp_path)
    write_table(tmp_path / "ablations.csv", [], ABLATIONS)
    write_table(tmp_path / "non_iid.csv", [], NON_IID)
    write_table(tmp_path / "models.csv", [], ["world", "run_id", "source"])  # none that assembles
    figure.run(P.sections_json(PARAMS, figure.SECTIONS), "0", name, tmp_path, tmp_path / "drawn")
    assert (tmp_path / "drawn" / f"{name}.png").stat().st_size > 1000


@pytest.mark.parametrize("name", PARAMS.figures.names)
def test_figures_draw_with_stable_bytes(results: Path, tmp_path: Path, name: str) -> None:
    small = PARAMS.model_copy(update={"figures": PARAMS.figures.model_copy(update={"dpi": 50})})
    sections = P.sections_json(small, figure.SECTIONS)
    for attempt in ("a", "b"):
        figure.run(sections, "0", name, results, tmp_path / attempt)
    for suffix in ("pdf", "png", "csv"):
        first, second = (tmp_path / attempt / f"{name}.{suffix}" for attempt in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
    df = pd.read_csv(tmp_path / "a" / f"{name}.csv")
    assert len(df)
    assert set(df["source"].dropna()) <= {"measured", "modelled", "paper"}


def test_the_figure_of_robustness_sorts_settings_into_panels(tmp_path: Path) -> None:
    methods = PARAMS.study.ablations.runs | PARAMS.study.dropouts.runs
    settings = {name: P.setting_text(P.read_yaml(ROOT / "params.yaml"), name) for name in methods}
    row = {"task": "boolq", "world": "embedded", "low": 0.5, "mean": 0.6, "high": 0.7, "runs": 1, "source": "measured"}
    rows = [
        {**row, "setting": s, "changed": changed, "method": m} for s, changed in settings.items() for m in methods[s]
    ]
    write_table(tmp_path / "ablations.csv", rows)
    df = robustness.data(Tables(tmp_path))
    lines = {key: list(mine["x"]) for key, mine in df.groupby(["panel", "method", "rule"])}
    assert lines["votes", "assyllm_paper", "weighted"] == lines["votes", "assyllm_paper", "median"] == [0, 0.2, 0.4]
    assert lines["votes", "assyllm_paper", "borda"] == [0]
    for m in ("assyllm", "assyllm_paper"):
        assert lines["sums", m, "no bound"] == lines["sums", m, "bounded"] == [0, 0.2, 0.4]
        assert lines["answering", m, ""] == pytest.approx([0.1, 0.4, 0.6, 1])
    assert lines["rounds", "assyllm", ""] == [1, 2, 5, 10]
    assert lines["surveyed", "assyllm", ""][:-1] == [1, 2, 4, np.inf]
    assert lines["items", "assyllm", ""] == lines["items", "ft_oracle", ""] == [1, 2, np.inf]
    assert {m for panel, m, _ in lines if panel == "votes"} == {"assyllm_paper"}
    for attempt in ("a", "b"):
        figure.run(P.sections_json(PARAMS, figure.SECTIONS), "0", "robustness", tmp_path, tmp_path / attempt)
    for suffix in ("pdf", "png", "csv"):
        first, second = (tmp_path / attempt / f"robustness.{suffix}" for attempt in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_the_figure_of_accuracy_against_energy_joins_the_cohorts_surveyed(tmp_path: Path) -> None:
    rows = [
        {"setting": setting, "method": method, "task": "boolq", "world": "embedded", "what": what, "value": value,
         "low": value, "high": value, "runs": 1, "source": source}
        for method, setting, energy in (
            ("ft_oracle", "", 1.0), ("assyllm", "", 0.7), ("assyllm", "assembling.assyllm.selection.beam=1", 0.4),
            ("assyllm", "assembling.assyllm.selection.survey_rounds=1", 0.2),
            ("assyllm", "assembling.assyllm.selection.survey_rounds=null", 1.2),
        )
        for what, value, source in (("accuracy", 0.9, "measured"), ("energy_of_full", energy, "modelled"))
    ]  # fmt: skip
    write_table(tmp_path / "tradeoff.csv", rows)
    df = tradeoff.data(Tables(tmp_path))
    found = {(r.method, r.way, r.cohorts): r.energy for r in df.itertuples()}
    assert found == {("ft_oracle", "", ""): 100, ("assyllm", "", ""): 70, ("assyllm", "other", ""): 40,
                     ("assyllm", "surveyed", "1"): 20, ("assyllm", "surveyed", "all"): 120}  # fmt: skip
    for attempt in ("a", "b"):
        figure.run(P.sections_json(PARAMS, figure.SECTIONS), "0", "tradeoff", tmp_path, tmp_path / attempt)
    assert (tmp_path / "a" / "tradeoff.png").read_bytes() == (tmp_path / "b" / "tradeoff.png").read_bytes()


def test_an_unknown_figure_is_one_line(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no figure called 'nope'"):
        figure.run(P.sections_json(PARAMS, figure.SECTIONS), "0", "nope", results, tmp_path)


@pytest.mark.parametrize("name", [name for name in PARAMS.figures.names if reads(name)])
def test_a_table_with_other_columns_is_one_line(tmp_path: Path, name: str) -> None:
    for table in reads(name):
        write_table(tmp_path / f"{table}.csv", [{"a": 1}])
    told = rf"{reads(name)[0]}\.csv.*not the columns that figure {name} reads \(.*\.py, line \d+"
    with pytest.raises(ArtifactError, match=told):
        figure.run(P.sections_json(PARAMS, figure.SECTIONS), "0", name, tmp_path, tmp_path / "drawn")
    assert not (tmp_path / "drawn").exists()


def test_traffic_that_never_changes_is_told_once() -> None:
    row = {"run_id": "r", "task": "boolq", "setting": "", "metric": "bytes_up", "value": "10"}
    same = [{**row, "round": str(i)} for i in (1, 2, 3)]
    other = [{**row, "run_id": "s", "round": str(i), "value": str(10 + (i == 3))} for i in (1, 2, 3)]
    losses = [{**row, "metric": "loss", "round": str(i)} for i in (1, 2)]
    assert condensed([*same, *other, *losses]) == [{**row, "round": ""}, *other, *losses]
    assert condensed(same[:1]) == same[:1]


def test_questions_of_one_name_in_another_world_are_others() -> None:
    rows = [{"run_id": run, "task": "boolq", "question": "q1", "about": about, "seen": "", "setting": setting,
             "method": "assyllm", "correct": "1"}
            for run, setting, about in (("base-assyllm-zoo0-seed0", "", "kibidi/coat"),
                                        ("base-assyllm-zoo0-seed1", "", "kibidi/coat"),
                                        ("world_1-assyllm-zoo0-seed0", "world.seed=1", "momuto/home"))]  # fmt: skip
    apart = told_apart(rows)
    assert [row["question"] for row in apart] == ["q1", "q1", "q1 about momuto/home"]
    assert subjects(apart) == {("boolq", "q1"): "kibidi/coat", ("boolq", "q1 about momuto/home"): "momuto/home"}
    table = ablation_table(
        apart, dict.fromkeys((row["run_id"] for row in rows), "embedded"), ["base", "world_1"], PARAMS.evaluate
    )
    assert [row["difference"] for row in table] == ["", ""], "nothing to be paired with"


def test_every_zoo_is_compared_for_itself() -> None:
    def answers(method: str, zoo: int, seed: int, marks: str, task: str = "boolq") -> list[dict[str, str]]:
        setting = f"zoo.seed={zoo}" if zoo else ""
        common = {"run_id": f"base-{method}-zoo{zoo}-seed{seed}", "method": method, "task": task, "setting": setting}
        return [{**common, "question": f"q{i}", "about": f"a{i}", "correct": mark} for i, mark in enumerate(marks)]

    rows = [
        *answers("assyllm", 0, 0, "1111"),
        *answers("assyllm", 0, 0, "1110", "piqa"),
        *answers("assyllm", 1, 0, "0000"),
        *answers("random_blocks", 0, 0, "1100"),
        *answers("random_blocks", 0, 0, "1100", "piqa"),
        *answers("random_blocks", 1, 0, "1000"),
        *answers("ft_oracle", 1, 3, "1111"),  # a seed that assyllm lacks
    ]
    elsewhere = [*answers("assyllm", 0, 0, "1000"), *answers("random_blocks", 0, 0, "1110")]
    rows += [row | {"setting": "world.seed=1", "run_id": f"world_1{row['run_id'][4:]}"} for row in elsewhere]
    found = {(r["zoo"], r["method"], r["task"]): r for r in zoo_table(rows, PARAMS.evaluate)}
    assert [found["0", "random_blocks", task]["behind"] for task in ("all", "boolq", "piqa")] == [0.375, 0.5, 0.25]
    assert found["0", "assyllm", "all"]["mean"] == 0.875
    assert found["0", "assyllm", "all"]["behind"] == ""
    row = found["1", "random_blocks", "all"]
    assert row["low"] <= row["behind"] == -0.25 <= row["high"]
    assert found["1", "ft_oracle", "boolq"]["behind"] == ""
    assert found["0 of world 1", "random_blocks", "all"]["behind"] == -0.5
    assert ("1", "random_blocks", "piqa") not in found


def test_ablations_are_paired_with_the_base_setting_of_the_same_method() -> None:
    def answers(setting: str, method: str, seed: int, marks: str, changed: str) -> list[dict[str, str]]:
        run = f"{setting}-{method}-zoo0-seed{seed}"
        return [
            {
                "run_id": run,
                "method": method,
                "task": "boolq",
                "setting": changed,
                "question": f"q{i}",
                "about": f"a{i}",
                "correct": mark,
            }
            for i, mark in enumerate(marks)
        ]

    rows = [
        *answers("base", "assyllm", 0, "1100", ""),
        *answers("base", "assyllm", 1, "1110", ""),
        *answers("base", "ft_oracle", 0, "1111", ""),
        *answers("beam_1", "assyllm", 0, "1000", "assembling.assyllm.selection.beam=1"),
        *answers("beam_1", "assyllm", 2, "1111", "assembling.assyllm.selection.beam=1"),  # no base run of this seed
    ]
    worlds = {row["run_id"]: "embedded" for row in rows}
    base, beam = ablation_table(rows, worlds, ["base", "beam_1"], PARAMS.evaluate)
    assert (base["setting"], base["mean"], base["difference"]) == ("base", 0.625, "")
    assert (beam["setting"], beam["mean"], beam["runs"]) == ("beam_1", 0.625, 2)
    assert beam["difference"] == pytest.approx(-0.25)  # seed 0 alone is paired
    assert beam["difference_low"] <= -0.25 <= beam["difference_high"] <= 0
    assert beam["changed"] == "assembling.assyllm.selection.beam=1"
