"""The record that every benchmark writes."""

from __future__ import annotations

import json
from pathlib import Path

from assyllm.bench.record import Record


def test_a_record_keeps_median_and_range_of_each_ratio(tmp_path: Path) -> None:
    record = Record.of("swapper", [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 2.5}, {"a": 1.5, "b": 9.0}])
    record.write(tmp_path / "bench.json")
    read = json.loads((tmp_path / "bench.json").read_text())
    assert list(read) == ["machine", "name", "ratios", "rounds"]
    assert read["rounds"] == 3
    assert read["ratios"] == {
        "a": {"median": 1.5, "min": 1.0, "max": 3.0},
        "b": {"median": 2.5, "min": 2.0, "max": 9.0},
    }
    assert "cores" in read["machine"]


def test_the_comparator_bench_measures_real_states() -> None:
    from assyllm.bench import comparator as bench

    states = bench.related_states(5, 48, 0)
    assert all(float(part.std()) > 0 for part in states)
    assert bench.bf16_error(states) < 5e-3
    ratio, difference = bench.speed(states, 32, 0)
    assert ratio > 0
    assert difference < 1e-4  # both sides of the bench compute the same CKA
    assert bench.known_error(0.5, 512, 0) < 0.1
    assert bench.known_error(0.0, 512, 0) < 0.1


def test_the_scoring_bench_counts_what_the_walker_saves() -> None:
    from assyllm.bench import scoring as bench

    pool = bench.RandomPool()
    assert len(pool.ids) == 28
    data = bench.task_data(pool, 0)
    assert all(float(states.std()) > 0 for states in data.native.values())
    found = bench.walk(pool, data, 3)
    assert 1 < found["saved"] <= (bench.PLACES + 1) / 2
    assert found["overhead_ms"] > 0
