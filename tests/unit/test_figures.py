"""Tables become figures: their own tables only, stable bytes, one line for what cannot be drawn."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from assyllm import params as P
from assyllm.artifacts import ArtifactError
from assyllm.collect.settings import ABLATIONS, NON_IID
from assyllm.figures import (
    compatibility_heatmaps,
    feature_differences,
    reads,
    robustness,
    style,
    swap_ablation,
    swap_timeline,
    tradeoff,
)
from assyllm.figures.tables import Tables
from assyllm.results import read_table, write_table
from assyllm.stages import figure

ROOT = Path(__file__).parents[2]
PARAMS = P.load(ROOT / "params.yaml")


def test_rank_correlations_are_of_a_score_with_accuracy(results: Path) -> None:
    df = compatibility_heatmaps.data(Tables(results))
    ranks = df[df["what"] == "rank correlation"].set_index(["task", "row"])["cka"]
    assert ranks["piqa", "cka"] == pytest.approx(1)
    assert ranks["piqa", "reported_compatibility"] == pytest.approx(-1)
    assert "0.38 (0.25 to 0.50)" in feature_differences.alike(Tables(results).feature_differences)


def test_a_task_of_ones_own_has_its_ranks_drawn(results: Path) -> None:
    df = compatibility_heatmaps.data(Tables(results))
    df["task"] = df["task"].replace("piqa", "mine")
    drawn = compatibility_heatmaps.draw(df, PARAMS.figures)
    assert "mine" in {text.get_text() for axes in drawn.axes if (legend := axes.get_legend()) for text in legend.texts}
    plt.close(drawn)


def test_the_swap_figures_say_what_was_saved(results: Path) -> None:
    df = swap_ablation.data(Tables(results))
    assert swap_ablation.saved(df) == (pytest.approx(25), pytest.approx(100 / 3))
    assert set(df[df["what"] == "reads"]["value"]) == {1.2}
    assert df[df["what"] == "time"]["limit"].unique().tolist() == [1.5]
    shown = swap_timeline.data(Tables(results))
    assert shown["start"].max() < 12
    assert set(shown["pipeline"]) == set(swap_timeline.PIPELINES)


def test_a_table_is_read_once_and_only_if_there_is_one_of_that_name(results: Path) -> None:
    tables = Tables(results)
    assert tables.accuracy is tables.accuracy
    with pytest.raises(AttributeError, match="no result table is called 'acuracy'"):
        _ = tables.acuracy


@pytest.mark.parametrize("name", sorted({*PARAMS.figures.names, *PARAMS.study.full.figures}))
def test_a_figure_reads_its_tables_and_no_others(results: Path, tmp_path: Path, name: str) -> None:
    draws = importlib.import_module(f"assyllm.figures.{name}")
    for table in reads(name):
        shutil.copy(results / f"{table}.csv", tmp_path)
    assert len(draws.data(Tables(tmp_path)))
    for table in reads(name):
        path = (tmp_path / f"{table}.csv").rename(tmp_path / "away")
        with pytest.raises(ArtifactError, match=table):
            draws.data(Tables(tmp_path))
        path.rename(tmp_path / f"{table}.csv")


@pytest.mark.parametrize("shape", ["llama-7b", "opt-6.7b"])
@pytest.mark.parametrize("name", PARAMS.figures.names)
def test_a_figure_of_a_zoo_without_one_of_the_7b_models(results: Path, tmp_path: Path, name: str, shape: str) -> None:
    draws = importlib.import_module(f"assyllm.figures.{name}")
    for table in reads(name):
        rows = read_table(results / f"{table}.csv")
        kept = [row for row in rows if table == "curves" or row.get("stands_for") != shape]  # those are of no zoo
        write_table(tmp_path / f"{table}.csv", kept, list(rows[0]) if rows else ["source"])
    style.apply(PARAMS.figures)
    df = draws.data(Tables(tmp_path))
    plt.close(draws.draw(df, PARAMS.figures) if len(df) else style.nothing(PARAMS.figures))


@pytest.mark.parametrize("name", ["existing_methods", "memory_wall", "algorithm_baselines"])
def test_a_figure_of_methods_that_were_not_run_says_so(results: Path, tmp_path: Path, name: str) -> None:
    for table in results.glob("*.csv"):
        rows = read_table(table)
        kept = [row for row in rows if table.name == "paper.csv" or row.get("method", "majority") == "majority"]
        write_table(tmp_path / table.name, kept, list(rows[0]) if rows else ["method"])
    figure.run(P.sections_json(PARAMS, figure.SECTIONS), "0", name, tmp_path, tmp_path / "drawn")
    assert (tmp_path / "drawn" / f"{name}.png").stat().st_size > 1000
    told = read_table(tmp_path / "drawn" / f"{name}.csv")
    assert not [row for row in told if row["source"] == "modelled"]


@pytest.mark.parametrize("name", ["robustness", "non_iid", "assembled_models"])
def test_a_figure_of_what_a_study_did_not_vary_says_so(results: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(results / "accuracy.csv", tmp_path)
    write_table(tmp_path / "ablations.csv", [], ABLATIONS)
    write_table(tmp_path / "non_iid.csv", [], NON_IID)
    write_table(tmp_path / "models.csv", [], ["world", "run_id", "source"])  # none that assembles
    figure.run(P.sections_json(PARAMS, figure.SECTIONS), "0", name, tmp_path, tmp_path / "drawn")
    assert (tmp_path / "drawn" / f"{name}.png").stat().st_size > 1000


@pytest.mark.parametrize("name", PARAMS.figures.names)
def test_figures_draw_with_stable_bytes(results: Path, tmp_path: Path, name: str) -> None:
    small = PARAMS.model_copy(update={"figures": PARAMS.figures.model_copy(update={"dpi": 50})})
    sections = P.sections_json(small, figure.SECTIONS)
    for attempt in ("a", "b"):
        figure.run(sections, "0", name, results, tmp_path / attempt)
    for suffix in ("pdf", "png", "csv"):
        first, second = (tmp_path / attempt / f"{name}.{suffix}" for attempt in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
    df = pd.read_csv(tmp_path / "a" / f"{name}.csv")
    assert len(df)
    assert set(df["source"].dropna()) <= {"measured", "modelled", "paper"}


def test_the_figure_of_robustness_sorts_settings_into_panels(tmp_path: Path) -> None:
    methods = PARAMS.study.ablations.runs | PARAMS.study.dropouts.runs
    settings = {name: P.setting_text(P.read_yaml(ROOT / "params.yaml"), name) for name in methods}
    row = {"task": "boolq", "world": "embedded", "low": 0.5, "mean": 0.6, "high": 0.7, "runs": 1, "source": "measured"}
    rows = [
        {**row, "setting": s, "changed": changed, "method": m} for s, changed in settings.items() for m in methods[s]
    ]
    write_table(tmp_path / "ablations.csv", rows)
    df = robustness.data(Tables(tmp_path))
    lines = {key: list(mine["x"]) for key, mine in df.groupby(["panel", "method", "rule"])}
    assert lines["votes", "assyllm_paper", "weighted"] == lines["votes", "assyllm_paper", "median"] == [0, 0.2, 0.4]
    assert lines["votes", "assyllm_paper", "borda"] == [0]
    for m in ("assyllm", "assyllm_paper"):
        assert lines["sums", m, "no bound"] == lines["sums", m, "bounded"] == [0, 0.2, 0.4]
        assert lines["answering", m, ""] == pytest.approx([0.1, 0.4, 0.6, 1])
    assert lines["rounds", "assyllm", ""] == [1, 2, 5, 10]
    assert lines["surveyed", "assyllm", ""][:-1] == [1, 2, 4, np.inf]
    assert lines["items", "assyllm", ""] == lines["items", "ft_oracle", ""] == [1, 2, np.inf]
    assert {m for panel, m, _ in lines if panel == "votes"} == {"assyllm_paper"}
    for attempt in ("a", "b"):
        figure.run(P.sections_json(PARAMS, figure.SECTIONS), "0", "robustness", tmp_path, tmp_path / attempt)
    for suffix in ("pdf", "png", "csv"):
        first, second = (tmp_path / attempt / f"robustness.{suffix}" for attempt in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_the_figure_of_accuracy_against_energy_joins_the_cohorts_surveyed(tmp_path: Path) -> None:
    rows = [
        {"setting": setting, "method": method, "task": "boolq", "world": "embedded", "what": what, "value": value,
         "low": value, "high": value, "runs": 1, "source": source}
        for method, setting, energy in (
            ("ft_oracle", "", 1.0), ("assyllm", "", 0.7), ("assyllm", "assembling.assyllm.selection.beam=1", 0.4),
            ("assyllm", "assembling.assyllm.selection.survey_rounds=1", 0.2),
            ("assyllm", "assembling.assyllm.selection.survey_rounds=null", 1.2),
        )
        for what, value, source in (("accuracy", 0.9, "measured"), ("energy_of_full", energy, "modelled"))
    ]  # fmt: skip
    write_table(tmp_path / "tradeoff.csv", rows)
    write_table(tmp_path / "resources.csv", [{"method": "assyllm", "device": "tx2"}])
    df = tradeoff.data(Tables(tmp_path))
    found = {(r.method, r.way, r.cohorts): r.energy for r in df.itertuples()}
    assert found == {("ft_oracle", "", ""): 100, ("assyllm", "", ""): 70, ("assyllm", "other", ""): 40,
                     ("assyllm", "surveyed", "1"): 20, ("assyllm", "surveyed", "all"): 120}  # fmt: skip
    for attempt in ("a", "b"):
        figure.run(P.sections_json(PARAMS, figure.SECTIONS), "0", "tradeoff", tmp_path, tmp_path / attempt)
    assert (tmp_path / "a" / "tradeoff.png").read_bytes() == (tmp_path / "b" / "tradeoff.png").read_bytes()


@pytest.mark.parametrize(
    ("low", "high", "told"), [(1.5, 60, ["2", "5", "10", "20", "50"]), (3, 8, ["5"]), (0.5, 60, ["1", "10"])]
)
def test_a_logarithmic_axis_of_one_decade_is_labelled_between(low: float, high: float, told: list[str]) -> None:
    drawn, ax = plt.subplots()
    style.log_axis(ax)
    ax.set_xlim(low, high)
    drawn.canvas.draw()
    ticks = sorted([*ax.xaxis.get_major_ticks(), *ax.xaxis.get_minor_ticks()], key=lambda tick: tick.get_loc())
    shown = [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]
    assert [text for text in shown if text] == told
    plt.close(drawn)


def test_numbers_on_bars_can_be_read() -> None:
    assert [style.ink("#D55E00", alpha) for alpha in (1.0, 0.6)] == ["white", "black"]


def test_a_caption_says_how_hours_are_counted_where_there_are_any(results: Path) -> None:
    df = tradeoff.data(Tables(results))
    drawn = tradeoff.draw(df, PARAMS.figures)
    caption = " ".join(drawn.texts[-1].get_text().split())
    assert style.UNTIL in caption
    assert "Steps: of Llama-7B, in whose passes blocks are counted, at a Jetson TX2's speed." in caption
    assert style.steps(df.drop(columns="device")) == ""
    plt.close(drawn)


def test_an_unknown_figure_is_one_line(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no figure called 'nope'"):
        figure.run(P.sections_json(PARAMS, figure.SECTIONS), "0", "nope", results, tmp_path)


@pytest.mark.parametrize("name", [name for name in PARAMS.figures.names if reads(name)])
def test_a_table_with_other_columns_is_one_line(tmp_path: Path, name: str) -> None:
    for table in reads(name):
        write_table(tmp_path / f"{table}.csv", [{"a": 1}])
    told = rf"{reads(name)[0]}\.csv.*not the columns that figure {name} reads \(.*\.py, line \d+"
    with pytest.raises(ArtifactError, match=told):
        figure.run(P.sections_json(PARAMS, figure.SECTIONS), "0", name, tmp_path, tmp_path / "drawn")
    assert not (tmp_path / "drawn").exists()
