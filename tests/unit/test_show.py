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
    assert lines[-1] == f"Tables: {tmp_path}/data/results/full"
    (tmp_path / "data" / "results" / "full" / "cost.csv").unlink()
    show("full", tmp_path)
    assert capsys.readouterr().out.splitlines() == lines
    (tmp_path / "data" / "results" / "cost.csv").unlink()
    show("full", tmp_path)
    assert "clients" not in capsys.readouterr().out


def test_a_second_world_has_its_own_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        f"embedded,piqa,{method},{setting},test,0.{mean},0.1,0.9,2,40,0,{main},measured"
        for method, setting, mean, main in (
            ("assyllm", "", 91, 1), ("assyllm", "world.seed=1", 92, 0), ("assyllm", "head.rounds=3", 93, 0),
            ("zero_shot", '"model=""bert"""', 81, 1), ("zero_shot", '"model=""bert"" world.seed=1"', 82, 0),
            ("zero_shot", '"model=""opt"" world.seed=1"', 83, 0),
        )
    ]  # fmt: skip
    folder = tmp_path / "data" / "results" / "worlds"
    folder.mkdir(parents=True)
    header = "world,task,method,setting,split,mean,low,high,runs,examples,collapsed,main,source"
    (folder / "accuracy.csv").write_text("\n".join([header, *rows, ""]))
    show("worlds", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("world.seed=1")
    shown = [[word for word in line.split() if word.startswith(".")] for line in lines]
    assert [found[0] for found in shown[:at] if found] == [".810", ".910"]
    assert [found[0] for found in shown[at:] if found] == [".820", ".920"]


def test_studies_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="--study nope: no such study; there are default, full"):
        show("nope", tmp_path)
    with pytest.raises(ArtifactError, match=r"zoos/accuracy\.csv"):
        show("zoos", tmp_path)
