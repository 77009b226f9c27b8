"""The tiny study's numbers against those of the last commit that changed them on purpose.

``python -m pytest tests/golden --regenerate`` writes ``tests/golden/tiny_study.csv`` anew. Where the zoo has the same
weights every number is the same. Another processor adds floats in another order and trains another tiny zoo: then
numbers that rest on it have a tolerance, losses and the bytes of what was chosen are not compared, and numbers that
follow from shapes and counts still have none.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from assyllm.params import ASSEMBLING
from assyllm.results import read_table, write_table

GOLDEN = Path(__file__).parent / "tiny_study.csv"
WEIGHTS = "weights"  # which zoo the numbers are of
EXACT, LOSS, SHARE = 1e-9, 0.05, 0.1  # absolute on accuracies (4 of 40 questions), relative elsewhere
pytestmark = pytest.mark.workflow


def numbers(folder: Path) -> dict[str, tuple[float, float]]:
    """Name -> (value, tolerance) of everything that is kept."""
    tables = {
        name: read_table(folder / "data" / "results" / f"{name}.csv")
        for name in ("accuracy", "cost", "metrics", "runs")
    }
    weights = " ".join(sorted({row["weights_sha"] for row in tables["runs"]}))
    found: dict[str, tuple[float, float]] = {WEIGHTS: (float(zlib.crc32(weights.encode())), EXACT)}
    for row in tables["accuracy"]:
        name = "/".join(row[key] for key in ("task", "method", "setting", "split"))
        found[f"accuracy/{name}"] = (float(row["mean"]), SHARE)
        found[f"examples/{name}"] = (float(row["examples"]), EXACT)
    for row in tables["cost"]:
        found["peak_gb/" + "/".join(row[key] for key in ("method", "model", "memory_gb"))] = (
            float(row["peak_gb"]),
            EXACT,
        )
    for row in tables["metrics"]:
        name = "/".join(row[key] for key in ("metric", "task", "method", "setting", "round"))
        if row["metric"] == "loss":
            found[name] = (float(row["value"]), LOSS)
        elif row["metric"] in ("bytes_up", "bytes_down"):
            assembled = row["method"] in ASSEMBLING
            found[f"chosen/{name}" if assembled else name] = (float(row["value"]), EXACT)
    return found


def test_the_tiny_study_gives_the_golden_numbers(study: Path, request: pytest.FixtureRequest) -> None:
    found = numbers(study)
    if request.config.getoption("--regenerate"):
        rows = [{"name": name, "value": value, "tolerance": tolerance} for name, (value, tolerance) in found.items()]
        write_table(GOLDEN, rows)
        pytest.skip(f"wrote {len(rows)} numbers")
    golden = {row["name"]: (float(row["value"]), float(row["tolerance"])) for row in read_table(GOLDEN)}
    same = found[WEIGHTS] == golden[WEIGHTS]
    held, now = ({n for n in names if same or not n.startswith(("loss/", "chosen/"))} for names in (golden, found))
    assert sorted(now) == sorted(held), "other numbers than before: regenerate if that is meant"
    wrong = []
    for name in sorted(held - {WEIGHTS}):
        value, room = golden[name]
        tolerance = (EXACT if same else room) * (1 if name.startswith("accuracy/") else abs(value))
        if abs(found[name][0] - value) > tolerance:
            wrong.append(f"{name}: {found[name][0]:.6g}, golden {value:.6g}")
    assert not wrong
