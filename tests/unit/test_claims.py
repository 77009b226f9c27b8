"""Tables become verdicts on the paper's claims."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from assyllm import params as P
from assyllm.claims.rows import _ablations
from assyllm.claims.shown import all_claims, swap_claims
from assyllm.claims.table import Claims, Kind, verdict
from assyllm.collect.runs import paper_values
from assyllm.results import read_table, write_table

ROOT = Path(__file__).parents[2]
PARAMS = P.load(ROOT / "params.yaml")


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
        (8.0, 0.5, None, "factor", "not reproduced"),  # slower
        (8.0, 2.0, None, "factor", "reproduced in direction"),
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
