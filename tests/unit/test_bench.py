"""The record that every benchmark writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assyllm.bench import swapper
from assyllm.bench.record import Record
from assyllm.swapper.ablation import optimum_bytes
from assyllm.swapper.plan import count


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
    assert found["saved"] == pytest.approx(found["reachable"]), "every distinct prefix passes once"
    alone = bench.SHORTLIST / (bench.SHORTLIST + (bench.PLACES - 1) / 2)  # of the bound, no prefix shared
    assert alone < found["reachable"] / ((bench.PLACES + 1) / 2) < alone + 0.1
    assert found["overhead_ms"] > 0


def test_reads_on_the_default_walk_are_near_the_least_possible() -> None:
    ratios = swapper.read_ratios()
    assert 1 <= ratios["reads_over_optimum_plan"] <= 1.01
    assert 1 <= ratios["reads_over_optimum_window"] <= 1.10


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=40),
    st.dictionaries(st.sampled_from("abcdefg"), st.integers(1, 9), min_size=7, max_size=7),
    st.integers(0, 30),
)
def test_no_policy_reads_less_than_the_bound_and_belady_meets_it_on_equal_sizes(plan, sizes, extra) -> None:
    budget = sum(sorted(sizes.values())[-2:]) + extra
    least = optimum_bytes(plan, sizes, budget)
    for policy in ("plan", "belady", "lru", "mru", "random"):
        assert sum(step.bytes for step in count(plan, sizes, budget, policy)) >= least
    equal = dict.fromkeys(sizes, 3)
    slots = 2 + extra % 4
    read = sum(step.bytes for step in count(plan, equal, 3 * slots, "belady"))
    assert read == optimum_bytes(plan, equal, 3 * slots)


def test_the_swapper_benchmark_gives_every_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    record = swapper.run(rounds=1, layers=4, width=64, inner=128)
    assert record.name == "swapper"
    assert set(record.ratios) == {
        "over_limit_balanced", "over_limit_600mbs", "over_limit_200mbs", "accelerate_over_ours",
        "no_overlap_over_ours", "reads_over_optimum_plan", "reads_over_optimum_window",
    }  # fmt: skip
    assert not list(tmp_path.iterdir()), "nothing stays behind"
