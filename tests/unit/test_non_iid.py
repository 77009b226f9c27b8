"""Clients of unequal data: the table, its claims and its figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from assyllm import params as P
from assyllm.claims.rows import _non_iid
from assyllm.claims.table import Claims
from assyllm.collect.runs import paper_values
from assyllm.collect.settings import NON_IID, non_iid_table
from assyllm.figures import non_iid
from assyllm.figures.tables import Tables
from assyllm.results import read_table, write_table

PARAMS = P.load(Path(__file__).parents[2] / "params.yaml")
# what was answered rightly: of two questions each of two tasks, by method, alpha and seed
RIGHT = {
    ("assyllm", "0.1"): ("11 10", "11 11"),
    ("assyllm", ""): ("11 11", "11 11"),
    ("assyllm", "1000"): ("11 11", "11 11"),
    ("lora", "0.1"): ("00 10", "10 10"),
    ("lora", ""): ("10 10", "10 10"),
    ("lora", "1000"): ("11 10", "11 10"),
    ("qlora", "0.1"): ("11 11",),  # of one seed, the others of two
    ("qlora", "1000"): ("11 11", "11 11"),
    ("fwdllm", ""): ("11 11", "11 11"),  # of one alpha
    ("lora_all", "0.1"): ("00 00", "00 00"),  # under another setting
    ("lora_all", "1000"): ("11 11", "11 11"),
}
FIVE = "baselines.lora_all.boolq.local_epochs=5 "


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return table()


def table(silent: tuple[str, str, int] | None = None) -> list[dict]:
    """Of :data:`RIGHT`; nobody answers the task, method and seed ``silent``."""
    predictions, runs = [], []
    for (method, alpha), seeds in RIGHT.items():
        setting = f"partition.alpha={alpha}" if alpha else ""
        setting = FIVE + setting if method == "lora_all" else setting
        for seed, marks in enumerate(seeds):
            run = f"alpha_{alpha}-{method}-zoo0-seed{seed}" if alpha else f"base-{method}-zoo0-seed{seed}"
            runs.append({"run_id": run, "setting": setting, "alpha": alpha or "1.0", "world": "embedded"})
            common = {"run_id": run, "method": method, "setting": setting}
            for task, own in zip(("boolq", "piqa"), marks.split(), strict=True):
                for i, mark in enumerate(own if (task, method, seed) != silent else ""):
                    about = {"question": f"q{i}", "about": f"a{i}", "correct": mark}
                    predictions.append({**common, "task": task, **about})
    other = {"run_id": "beam_1-assyllm-zoo0-seed0", "setting": "assembling.assyllm.selection.beam=1", "alpha": "1.0"}
    runs.append({**other, "world": "embedded"})
    predictions.append(predictions[0] | {"run_id": other["run_id"], "setting": other["setting"]})
    return non_iid_table(predictions, runs, PARAMS.evaluate)


def test_a_drop_is_from_the_most_equal_clients(rows: list[dict]) -> None:
    found = {(r["task"], r["method"], r["alpha"]): r for r in rows}
    assert {method for _, method, _ in found} == {"assyllm", "lora", "lora_all"}
    assert {r["changed"] for r in rows if r["method"] == "lora_all"} == {FIVE.strip()}
    assert {r["changed"] for r in rows if r["method"] != "lora_all"} == {""}
    worst = found["boolq", "lora", 0.1]
    assert (worst["mean"], worst["drop"], worst["runs"]) == (0.25, 0.75, 2)
    assert worst["drop_low"] <= 0.75 <= worst["drop_high"] <= 1
    assert found["boolq", "lora", 1.0]["drop"] == 0.5
    assert found["boolq", "lora", 1000.0]["drop"] == ""
    assert found["all", "lora", 0.1]["drop"] == 0.375


def test_a_task_that_nobody_answered_in_some_run_is_left_out() -> None:
    found = {(row["method"], row["task"]) for row in table(("piqa", "lora", 1))}
    assert {task for method, task in found if method == "lora"} == {"boolq"}
    assert {task for method, task in found if method == "assyllm"} == {"all", "boolq", "piqa"}


def test_drops_are_held_against_ours(rows: list[dict]) -> None:
    found = {(r["task"], r["method"], r["alpha"]): r for r in rows}
    assert found["piqa", "assyllm", 0.1]["drop"] == 0.25
    more = found["piqa", "lora", 0.1]
    assert more["more"] == -0.25  # it loses nothing there
    assert more["more_low"] <= -0.25 <= more["more_high"]
    assert found["all", "lora", 0.1]["more"] == 0.25
    assert found["piqa", "assyllm", 0.1]["more"] == ""


def test_claims_take_the_largest_loss(rows: list[dict]) -> None:
    table = Claims(paper_values(), "two runs", "embedded")
    _non_iid(table, rows)
    found = {(r["claim"], r["method"]): r for r in table.rows}
    ours = found["Accuracy lost to unequal clients at most, boolq", "assyllm"]
    assert (ours["our_value"], ours["verdict"]) == (0, "reproduced")
    theirs = found["Baselines lose to unequal clients, up to, boolq", "baselines"]
    assert theirs["our_value"] == 100, "under any setting"
    paper = found["Accuracy lost to unequal clients at most, boolq", "assyllm_paper"]
    assert paper["verdict"] == "not yet measured"


def test_the_figure_has_a_line_and_a_loss_a_method(rows: list[dict], tmp_path: Path) -> None:
    write_table(tmp_path / "non_iid.csv", rows, NON_IID)
    df = non_iid.data(Tables(tmp_path))
    assert set(df["method"]) == {"assyllm", "lora"}
    lost = df[(df["kind"] == "lost") & (df["alpha"] == 0.1)].set_index(["task", "method"])["value"]
    assert lost["boolq", "lora"] == pytest.approx(75)
    figure = non_iid.draw(df, PARAMS.figures)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["0.1", "1", "IID"]
    plt.close(figure)


def test_a_study_of_one_alpha_has_an_empty_table(tmp_path: Path) -> None:
    runs = [{"run_id": "base-lora-zoo0-seed0", "setting": "", "alpha": "1.0", "world": "embedded"}]
    one = {"run_id": "base-lora-zoo0-seed0", "method": "lora", "task": "boolq", "setting": "", "question": "q"}
    write_table(
        tmp_path / "t.csv", non_iid_table([one | {"about": "a", "correct": "1"}], runs, PARAMS.evaluate), NON_IID
    )
    assert read_table(tmp_path / "t.csv") == []
