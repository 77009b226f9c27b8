"""The cost model's predictions beside what a GPU measured: peak memory, and step time with fitted efficiencies.

    python benchmarks/cost_against_gpu.py measured.json ... [--keep] [--out benchmarks/cost_against_gpu.csv]

``measured.json`` comes from ``tests/gpu/cost_h200.py``; of several files the later ones' rows replace the earlier's.
With ``--keep`` the table's rows of what was not measured now stay as they are.
Two efficiencies (products, bandwidth) are fitted to the step times by least squares on their logarithms; put them into
``cost/devices.py``. About a minute on one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any

from assyllm.cost.devices import EFFICIENCY, compute_seconds, devices
from assyllm.cost.point import Point, measure_point
from assyllm.cost.selection import Residency
from assyllm.cost.shapes import config_of
from assyllm.cost.step import Reading
from assyllm.results import read_table, write_table

GIB = 2**30
READING = ("batch", "tokens", "optimizer", "bytes_per_weight", "attention", "targets", "rank", "directions")
# of rows measured before there were others
USUAL = {"targets": "query_value", "rank": 8, "directions": 1, "kernel": ""}
KEY = ("method", "kernel", *READING, "residency")
# what a row of the table is about
ROW = ("method", "batch", "tokens", "optimizer", "targets", "rank", "directions", "kernel", "residency")
PRODUCTS = [n / 100 for n in range(50, 91)]  # of matrix products and attention: at most 3 % of a step is attention
BANDWIDTH = [n / 20 for n in range(8, 21)]


def predicted(row: dict[str, Any]) -> Point:
    """The cost model's point for a measured row."""
    residency = Residency(**row["residency"]) if row.get("residency") else None
    reading = Reading(**{k: row[k] for k in READING if k in row})
    return measure_point(row["method"], config_of(row["model"]), reading, residency, deep=False)


def fit(points: list[Point], seconds: list[float], on: Any) -> dict[str, float]:
    """The efficiencies of the grid with the smallest squared error of log time."""

    def error(efficiency: dict[str, float]) -> float:
        times = [compute_seconds(point.operations, on, efficiency) for point in points]
        return sum(math.log(ours / theirs) ** 2 for ours, theirs in zip(times, seconds, strict=True))

    pairs = itertools.product(PRODUCTS, BANDWIDTH)
    return min(({"matmul": p, "attention": p, "bandwidth": b} for p, b in pairs), key=error)


def main() -> None:
    """Predict, fit, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument(
        "--code", default="", help="Commit of the code that was measured and predicts, if not this one."
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the table's other rows, and the efficiencies as they are"
    )
    options = parser.parse_args()
    files = [json.loads(path.read_text()) for path in options.measured]
    measured = files[0]
    latest = {json.dumps([row.get(k) for k in KEY]): row for file in files for row in file["rows"]}
    on = devices()["h200" if "H200" in measured["device"] else "a100" if "A100" in measured["device"] else "h100"]
    done = [row for row in latest.values() if row["status"] == "ok"]
    points = [predicted(row) for row in done]
    # streamed methods, adapter training among them, draw random numbers there, and packed weights are unpacked with
    # plain torch: not what is modelled
    plain = [i for i, row in enumerate(done) if row["method"] in ("ft_oracle", "lora", "fedadapter", "fwdllm")]
    efficiency = EFFICIENCY
    if plain and not options.keep:
        efficiency = fit([points[i] for i in plain], [done[i]["step_s"] for i in plain], on)
    rows = []
    for row, point in zip(done, points, strict=True):
        seconds = compute_seconds(point.operations, on, efficiency)
        rows.append(
            {
                "device": measured["device"], "method": row["method"], "batch": row["batch"], "tokens": row["tokens"],
                "optimizer": row["optimizer"], **{k: row.get(k, usual) for k, usual in USUAL.items()},
                "code": options.code,
                "residency": json.dumps(row["residency"]) if row["residency"] else "",
                "measured_gib": row["peak_bytes"] / GIB, "predicted_gib": point.total / GIB,
                "memory_error_percent": 100 * (point.total / row["peak_bytes"] - 1),
                "measured_s": row["step_s"], "predicted_s": seconds,
                "time_error_percent": 100 * (seconds / row["step_s"] - 1),
            }
        )  # fmt: skip
        print("{method:20s}{tokens:5d} {optimizer:10s}{measured_gib:8.2f}{predicted_gib:8.2f} GiB "
              "{memory_error_percent:+6.2f} %{measured_s:8.3f}{predicted_s:8.3f} s {time_error_percent:+6.1f} %".format(
                  **rows[-1]), flush=True)  # fmt: skip
    kept = read_table(options.out) if options.keep and options.out.is_file() else []
    kept = [{**{name: str(value) for name, value in USUAL.items()}, **row} for row in kept]
    new = {tuple(str(row[k]) for k in ROW) for row in rows}
    every = [*(row for row in kept if tuple(row[k] for k in ROW) not in new), *rows]
    write_table(options.out, every, list(rows[0]))
    large = [abs(r["memory_error_percent"]) for r in rows if r["measured_gib"] > 4]
    small = [abs(r["memory_error_percent"]) for r in rows if r["measured_gib"] <= 4]
    print(f"efficiency {efficiency}; workspace {measured['workspace']}; rates {measured['rates']}")
    print(f"largest error: {max(large, default=0):.2f} % above 4 GiB, {max(small, default=0):.2f} % below")
    for row in latest.values():
        if row["status"] != "ok":
            print("not measured:", row["method"], row["tokens"], row["optimizer"], row["status"])


if __name__ == "__main__":
    main()
