"""Every run of a study becomes its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assyllm.artifacts import write_json
from assyllm.collect.hits import told_apart
from assyllm.collect.methods import (
    ACCURACY,
    DIFFERENCES,
    ROUNDS,
    accuracy_table,
    difference_table,
    round_table,
    summary,
)
from assyllm.collect.runs import (
    answered,
    check_complete,
    condensed,
    cost_metrics,
    gather,
    gather_optional,
    paper_values,
)
from assyllm.collect.settings import ABLATIONS, NON_IID, ZOOS, ablation_table, non_iid_table, zoo_table
from assyllm.cost.devices import on_device
from assyllm.cost.resources import HOURS, RESOURCES, TRADEOFF, places_of, resources_table, tradeoff_table, with_hours
from assyllm.results import Metric, Prediction, Run, RunKey, read_table, write_table


def collect(
    size: str, runs: list[Path], cost_tables: list[Path], p: Any, out: Path, curve_tables: Sequence[Path] = (),
    precision: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Read every run and write all tables into ``out``.

    Args:
        p: sections evaluate, baselines, assembling, partition, zoo, blocks, cost.

    Raises:
        ArtifactError: a run is incomplete or malformed; nothing is written then.
    """
    from assyllm.claims.rows import claims_table
    from assyllm.claims.table import COLUMNS as CLAIMS
    from assyllm.cost.pool_sizes import model_table
    from assyllm.precision import COLUMNS, quantizer_table

    ev = p.evaluate
    run_rows = gather(runs, "run", Run)
    metrics = gather(runs, "metrics", Metric)
    predictions = gather(runs, "predictions", Prediction)
    check_complete(run_rows, metrics)
    stored, metrics = metrics, answered(metrics, metrics)
    predictions = told_apart(answered(predictions, stored))
    worlds = {row["run_id"]: row["world"] for row in run_rows}
    world = run_rows[0]["world"]
    keys = [RunKey.of(row["run_id"]) for row in run_rows]
    models = [{"world": worlds[m["run_id"]], **m} for m in gather_optional(runs, "models")]
    timings = gather_optional(runs, "timings")
    cost, curves = (
        on_device((row for table in tables for row in read_table(table)), p.cost.device)
        for tables in (cost_tables, curve_tables)
    )

    accuracy = accuracy_table(predictions, metrics, worlds, ev)
    differences = difference_table(predictions, ev)
    zoos = zoo_table(predictions, ev)
    ablations = ablation_table(predictions, worlds, list(dict.fromkeys(key.setting for key in keys)), ev)
    non_iid = non_iid_table(predictions, run_rows, ev)
    places = places_of(gather_optional(runs, "walk"), models, p)
    resources = resources_table(metrics, cost, places, p)
    rounds = with_hours(round_table(metrics), resources, places)
    tradeoff = tradeoff_table(accuracy, resources, places)
    quantizer = quantizer_table(p.zoo, p.blocks, precision, predictions, world, ev)
    base = sorted({key.repetition for key in keys if key.setting == "base"})
    claims = claims_table(
        accuracy, differences, models, cost, paper_values(), size, resources, quantizer, ablations, base, non_iid
    )

    out = Path(out)
    write_table(out / "metrics.csv", [*condensed(stored), *cost_metrics(cost, world)], Metric.__dataclass_fields__)
    write_table(out / "runs.csv", run_rows)
    write_table(out / "accuracy.csv", accuracy, ACCURACY)
    write_table(out / "differences.csv", differences, DIFFERENCES)
    write_table(out / "zoos.csv", zoos, ZOOS)
    write_table(out / "ablations.csv", ablations, ABLATIONS)
    write_table(out / "non_iid.csv", non_iid, NON_IID)
    write_table(out / "models.csv", models, models[0] if models else ["world", "run_id", "source"])
    write_table(out / "cost.csv", cost)
    write_table(out / "curves.csv", curves, curves[0] if curves else ["method", "stands_for", "varies", "source"])
    write_table(out / "resources.csv", resources, RESOURCES)
    write_table(out / "rounds.csv", rounds, [*ROUNDS, *HOURS])
    write_table(out / "tradeoff.csv", tradeoff, TRADEOFF)
    write_table(out / "paper.csv", paper_values())
    write_table(out / "quantizer.csv", quantizer, COLUMNS)
    write_table(out / "model_sizes.csv", model_table(p.zoo, p.blocks))
    write_table(out / "timings.csv", timings, ["run_id", "what", "value", "unit"])
    write_table(out / "claims.csv", claims, CLAIMS)
    write_json(out / "summary.json", summary(accuracy))
