"""A study made again: equal where the weights are, else within the intervals."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from assyllm.artifacts import ArtifactError
from assyllm.cli import app
from assyllm.reproduced import EQUAL, compare
from assyllm.results import FIGURE_TABLES, TABLES, read_table, write_table

COMMITTED = Path(__file__).parents[2] / "data" / "results"


@pytest.fixture
def again(tmp_path: Path) -> Path:
    """A copy of the committed tables."""
    ignored = shutil.ignore_patterns("full", "zoos", "worlds", "choosing", "ablations", "non_iid", "dropouts")
    return Path(shutil.copytree(COMMITTED, tmp_path / "again", ignore=ignored))


def edit(path: Path, row: int, column: str, value: str) -> None:
    rows = read_table(path)
    rows[row][column] = value
    write_table(path, rows)


def test_the_same_tables_are_equal_cell_by_cell(again: Path) -> None:
    found = compare(COMMITTED, again)
    cells = 0
    for table in EQUAL:
        with open(COMMITTED / f"{table}.csv", newline="", encoding="utf-8") as handle:
            rows = list(csv.reader(handle))
        cells += len(rows[0]) * (len(rows) - 1)
    assert (found.how, found.compared, found.differences) == ("the same weights, equal cells", cells, [])


@pytest.mark.parametrize("table", ["metrics", "accuracy", "models"])
def test_one_changed_cell_is_named(again: Path, table: str) -> None:
    column = {"metrics": "value", "accuracy": "mean", "models": "accuracy_test"}[table]
    edit(again / f"{table}.csv", 3, column, "0.123")
    found = compare(COMMITTED, again)
    assert len(found.differences) == 1
    assert f"{table}.csv line 5" in found.differences[0]
    assert "now 0.123" in found.differences[0]


def test_every_table_is_compared_but_those_of_hashes_and_of_the_paper() -> None:
    assert {*TABLES, *FIGURE_TABLES} - {*EQUAL} == {
        "runs",
        "paper",
        "swap_timeline",
        "swap_ablation",
    }  # the last: times


def test_hashes_of_code_are_no_results(again: Path) -> None:
    edit(again / "runs.csv", 0, "code_sha", "another")
    assert compare(COMMITTED, again).differences == []


def test_other_weights_are_held_to_the_intervals(again: Path) -> None:
    rows = read_table(again / "runs.csv")
    write_table(again / "runs.csv", [row | {"weights_sha": "another"} for row in rows])
    edit(again / "accuracy.csv", 0, "mean", read_table(again / "accuracy.csv")[0]["low"])  # inside the interval
    found = compare(COMMITTED, again)
    intervals = len(read_table(COMMITTED / "accuracy.csv"))
    cells = found.compared - intervals
    assert found.how == f"other weights, {intervals} intervals at most 0.05 apart, {cells} equal cells of shapes"
    assert (cells > 0, found.differences) == (True, [])
    row = read_table(again / "accuracy.csv")[0]
    for column in ("mean", "low", "high"):
        edit(again / "accuracy.csv", 0, column, "0.01")
    found = compare(COMMITTED, again)
    assert len(found.differences) == 1
    assert row["method"] in found.differences[0]
    result = CliRunner().invoke(app, ["reproduced", str(COMMITTED), str(again)])
    assert result.exit_code == 1
    assert "1 differ" in result.output


def test_a_missing_column_is_named(again: Path) -> None:
    rows = read_table(again / "runs.csv")
    write_table(again / "runs.csv", [{k: v for k, v in row.items() if k != "weights_sha"} for row in rows])
    with pytest.raises(ArtifactError, match=r"runs\.csv: no column 'weights_sha'"):
        compare(COMMITTED, again)


def test_another_study_is_refused(again: Path) -> None:
    edit(again / "runs.csv", 0, "run_id", "base-elsewhere-zoo0-seed0")
    with pytest.raises(ArtifactError, match=r"not runs of .*: base-elsewhere-zoo0-seed0"):
        compare(COMMITTED, again)


@pytest.fixture
def part(again: Path) -> Path:
    """One seed of two methods, as a study of them alone would write its tables."""
    methods = {"assyllm", "ft_oracle"}
    for table in ("runs", "metrics", "models", "cost", "curves"):
        rows = [row for row in read_table(again / f"{table}.csv") if row["method"] in methods]
        write_table(again / f"{table}.csv", [row for row in rows if row.get("seed", "0") == "0"])
    runs = read_table(again / "runs.csv")
    write_table(again / "runs.csv", [row for row in runs if row["setting"] == ""])
    for table in ("metrics", "models"):
        rows = read_table(again / f"{table}.csv")
        write_table(again / f"{table}.csv", [row for row in rows if row["setting"] == ""])
    return again


def test_a_part_of_the_runs_is_held_to_its_own_rows(part: Path) -> None:
    found = compare(COMMITTED, part)
    assert found.how.startswith("2 of ")
    assert "the same weights" in found.how
    assert found.compared > 10_000
    assert found.differences == []
    edit(part / "metrics.csv", 3, "value", "0.123")
    assert "metrics.csv line 5" in compare(COMMITTED, part).differences[0]


def test_a_part_with_other_weights_is_held_to_the_intervals(part: Path) -> None:
    write_table(part / "runs.csv", [row | {"weights_sha": "another"} for row in read_table(part / "runs.csv")])
    rows = [row for row in read_table(part / "accuracy.csv") if row["method"] == "assyllm"]
    write_table(part / "accuracy.csv", rows)
    assert compare(COMMITTED, part).differences == []
    for column in ("mean", "low", "high"):
        edit(part / "accuracy.csv", 0, column, "0.01")
    assert len(compare(COMMITTED, part).differences) == 1


def part_of(again: Path, methods: tuple[str, ...]) -> None:
    """Leave the runs of seed 0 of some methods, as the study ``check`` makes them."""
    runs = [r for r in read_table(again / "runs.csv") if r["method"] in methods and r["run_id"].startswith("base-")]
    write_table(again / "runs.csv", runs)
    names = {r["run_id"] for r in runs}
    for table in ("metrics", "models"):
        rows = read_table(again / f"{table}.csv")
        write_table(again / f"{table}.csv", [r for r in rows if r["run_id"] in names], columns=list(rows[0]))


def test_a_run_of_a_part_that_has_no_numbers_is_found(again: Path) -> None:
    part_of(again, ("majority", "ft_oracle"))
    assert compare(COMMITTED, again).differences == []
    rows = read_table(again / "metrics.csv")
    write_table(again / "metrics.csv", [r for r in rows if r["method"] != "ft_oracle"])
    assert "metrics" in compare(COMMITTED, again).differences[0]


@pytest.mark.parametrize("value", ["nan", ""])
def test_an_accuracy_that_is_no_number_is_no_match(again: Path, value: str) -> None:
    rows = read_table(again / "runs.csv")
    write_table(again / "runs.csv", [row | {"weights_sha": "another"} for row in rows])
    for column in ("mean", "low", "high"):
        edit(again / "accuracy.csv", 0, column, value)
    if value:
        assert len(compare(COMMITTED, again).differences) == 1
    else:
        with pytest.raises(ArtifactError, match="no number"):
            compare(COMMITTED, again)
