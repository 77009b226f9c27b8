"""``assyllm show``: a study's accuracies on the screen are those of its tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from assyllm import show
from assyllm.artifacts import ArtifactError
from assyllm.readme import share
from assyllm.results import read_table


def printed(results: Path) -> list[str]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(show.accuracies(results))
    return capture.get().splitlines()


def test_every_main_row_of_the_table_is_shown_with_its_interval(results: Path) -> None:
    lines = printed(results)
    rows = [r for r in read_table(results / "accuracy.csv") if (r["main"], r["split"]) == ("1", "test")]
    assert rows
    for row in rows:
        text = f"{share(row['mean'])} ({share(row['low'])} to {share(row['high'])})"
        assert any(line.split()[0] == row["method"] and text in line for line in lines), row
    assert {line.split()[0] for line in lines[2:-1]} == {row["method"] for row in rows}
    assert lines[0].startswith("Test accuracy (95 % interval), generated tasks: mean of 2 runs, 80 questions a task")


def test_without_cost_tables_nobody_s_share_is_told(results: Path, tmp_path: Path) -> None:
    (tmp_path / "accuracy.csv").write_bytes((results / "accuracy.csv").read_bytes())
    assert any("%" in line for line in printed(results)[2:])
    assert not any("%" in line for line in printed(tmp_path)[2:])


def test_studies_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    assert show.folder_of("default", tmp_path) == tmp_path / "data" / "results"
    assert show.folder_of("full", tmp_path) == tmp_path / "data" / "results" / "full"
    with pytest.raises(ArtifactError, match="--study nope: no such study; there are default, full"):
        show.folder_of("nope", tmp_path)
