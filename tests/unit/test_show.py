"""``assyllm show``: a study's accuracies on the screen are those of its tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from assyllm.artifacts import ArtifactError
from assyllm.readme import share
from assyllm.results import read_table
from assyllm.show import show


def printed(results: Path, root: Path, capsys: pytest.CaptureFixture[str], study: str = "default") -> list[str]:
    folder = root / "data" / "results" / ("" if study == "default" else study)
    folder.mkdir(parents=True)
    for name in ("accuracy.csv", "cost.csv"):
        shutil.copy(results / name, folder / name)
    show(study, root)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_every_main_row_is_shown_whole_on_any_screen(
    columns: int, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = printed(results, tmp_path, capsys)
    rows = [r for r in read_table(results / "accuracy.csv") if (r["main"], r["split"]) == ("1", "test")]
    assert rows
    for row in rows:
        text = f"{share(row['mean'])} {share(row['low'])}-{share(row['high'])}"
        assert any(line.split()[0] == row["method"] and text in line for line in lines[2:-2]), row
    assert {line.split()[0] for line in lines[2:-2]} - {"clients:", "*:"} == {row["method"] for row in rows}
    assert lines[0].startswith("Test accuracy and its 95 % interval, generated tasks: 2 runs, 80 questions")
    assert max(map(len, lines[1:-2])) <= max(80, columns)


def test_who_can_take_part_is_told_by_the_default_studys_table(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert any("%" in line for line in printed(results, tmp_path, capsys)[2:-3])
    lines = printed(results, tmp_path, capsys, "full")
    assert lines[-1] == f"Tables: {tmp_path}/data/results/full; figures (0): {tmp_path}/figures/full"
    (tmp_path / "data" / "results" / "full" / "cost.csv").unlink()
    show("full", tmp_path)
    assert capsys.readouterr().out.splitlines() == lines
    (tmp_path / "data" / "results" / "cost.csv").unlink()
    show("full", tmp_path)
    assert "clients" not in capsys.readouterr().out


def test_studies_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="--study nope: no such study; there are default, full"):
        show("nope", tmp_path)
    with pytest.raises(ArtifactError, match=r"zoos/accuracy\.csv"):
        show("zoos", tmp_path)
