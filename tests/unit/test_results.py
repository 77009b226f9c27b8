"""Result tables have the declared columns, stable bytes, finite values and known sources."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from assyllm import results as R
from assyllm.artifacts import ArtifactError

ROW = R.Metric(
    run_id="base-x-zoo0-seed0", method="x", task="boolq", world="embedded", seed=0, split="test",
    metric="accuracy", value=2 / 3,
)  # fmt: skip


def test_rows_round_trip_with_ten_digits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    R.write_rows(path, R.Metric, [ROW, replace(ROW, round=3, source="modelled")])
    rows = R.check_columns(path, R.Metric)
    assert rows[0]["value"] == "0.6666666667"
    assert rows[1]["round"] == "3"
    before = path.read_bytes()
    R.write_rows(path, R.Metric, [ROW, replace(ROW, round=3, source="modelled")])
    assert path.read_bytes() == before


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with pytest.raises(ArtifactError, match="finite"):
        R.write_rows(path, R.Metric, [replace(ROW, value=float("nan"))])
    assert not path.exists()
    R.write_rows(path, R.Metric, [replace(ROW, source="guessed")])  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="'guessed'"):
        R.check_columns(path, R.Metric)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ArtifactError, match="columns"):
        R.check_columns(path, R.Metric)
    with pytest.raises(ArtifactError, match="No such file"):
        R.check_columns(tmp_path / "none.csv", R.Metric)
