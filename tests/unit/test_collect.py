"""Runs become tables: completeness, intervals, paired differences."""

from __future__ import annotations

from pathlib import Path

import pytest

from assyllm import params as P
from assyllm.artifacts import ArtifactError
from assyllm.collect.hits import asked, told_apart
from assyllm.collect.methods import round_table
from assyllm.collect.runs import condensed
from assyllm.collect.settings import ablation_table, zoo_table
from assyllm.collect.tables import collect
from assyllm.cost.resources import RESOURCES, ROWS_PER_CHOICE
from assyllm.results import read_table, write_table
from tiny.tables import write_cost, write_run

ROOT = Path(__file__).parents[2]
PARAMS = P.load(ROOT / "params.yaml")


def test_accuracy_has_its_interval_and_counts(results: Path) -> None:
    rows = {(r["task"], r["method"], r["setting"], r["split"]): r for r in read_table(results / "accuracy.csv")}
    row = rows["boolq", "ft_oracle", "", "test"]
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    assert (row["runs"], row["examples"], row["main"]) == ("2", "80", "1")
    assert rows["boolq", "ft_oracle", "", "test_seen"]["examples"] == "40"
    assert rows["boolq", "ft_oracle", 'baselines.model="opt"', "test"]["main"] == "0"


def test_differences_are_paired_and_signed(results: Path) -> None:
    rows = {(r["task"], r["method"], r["versus"]): r for r in read_table(results / "differences.csv")}
    row, other = rows["boolq", "ft_practical", "ft_oracle"], rows["boolq", "ft_oracle", "ft_practical"]
    assert float(row["low"]) < float(row["difference"]) < 0
    assert [float(row[key]) for key in ("difference", "low", "high")] == [
        -float(other[key]) for key in ("difference", "high", "low")
    ]


def test_accuracy_against_bytes_is_paired_with_the_models_as_fitted(results: Path) -> None:
    rows = read_table(results / "quantizer.csv")
    found = {(r["precision"], r["task"], r["refit"]): r for r in rows if r["what"] == "accuracy"}
    exact, base = found["fp16", "piqa", "0"], found["base", "piqa", "0"]
    assert (float(exact["difference"]), float(exact["bits"]), float(base["bits"])) == (0, 16, 5.6)
    assert float(base["difference"]) == pytest.approx(float(base["mean"]) - float(exact["mean"]))
    assert float(base["difference_low"]) < float(base["difference"]) < float(base["difference_high"])
    assert found["base", "piqa", "1"]["runs"] == "1"  # of two seeds re-fitted, one has its counterpart
    sizes = {r["precision"]: r for r in rows if r["what"] == "size"}
    assert float(sizes["FP16"]["size_gb"]) == pytest.approx(41.2, abs=0.05)
    mix = sizes["paper's mix of INT4 and INT8, 4.77 bits"]
    assert float(mix["size_gb"]) <= 12.4
    assert mix["source"] == "modelled"


def test_model_sizes_are_the_true_ones(results: Path) -> None:
    rows = {(r["model"], r["part"]): r for r in read_table(results / "model_sizes.csv")}
    for model, value in (("llama", 13.48), ("opt", 13.32), ("bert", 0.218), ("roberta", 0.709)):
        assert float(rows[model, "model"]["fp16_gb"]) == pytest.approx(value, rel=0.002)
    assert sum(part.startswith("block") for _, part in rows) == 28
    for model in PARAMS.zoo.models:
        parts = [float(r["fp16_gb"]) for (m, part), r in rows.items() if m == model and part != "model"]
        assert sum(parts) == pytest.approx(float(rows[model, "model"]["fp16_gb"]))


def test_resources_are_rounds_times_steps(results: Path) -> None:
    rows = {(r["task"], r["method"]): r for r in read_table(results / "resources.csv")}
    assert set(rows["boolq", "ft_oracle"]) == set(RESOURCES)
    oracle, practical = rows["boolq", "ft_oracle"], rows["boolq", "ft_practical"]
    batches = 3  # 9,427 items of 200 clients in batches of 16
    epochs = PARAMS.baselines.ft_oracle["boolq"].local_epochs
    assert (oracle["rounds"], oracle["rounds_from"]) == ("20", "best_round")
    assert float(oracle["hours"]) == pytest.approx(20 * batches * epochs * 138.0 / 3600)
    assert float(oracle["traffic_gb"]) == pytest.approx(20 * 26.4)
    assert float(practical["speedup"]) == 1
    ours = rows["boolq", "assyllm_paper"]
    assert ours["rounds_from"] == "all rounds"
    # both models as they are (with the chain and its natural continuation), the other candidates on the chain, two
    # rounds of the head; OPT's layers compute nearly what Llama's do; joins come on top
    walks = (1 + 1) + (0.5 + 0.75) + 2 * (0.25 + 0.25)
    walked = batches * walks * ROWS_PER_CHOICE["boolq"]
    assert walked < float(ours["steps"]) < 1.08 * walked
    assert float(ours["traffic_gb"]) < 0.5 * float(oracle["traffic_gb"])


def test_an_incomplete_run_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "majority", "", "base", 0, ("boolq",))
    text = (run / "run.csv").read_text().replace(",boolq,", ",boolq piqa,")
    (run / "run.csv").write_text(text)
    with pytest.raises(ArtifactError, match="base-majority-zoo0-seed0: no test accuracy for piqa"):
        collect("default", [run], [], PARAMS, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_what_no_client_can_run_has_no_accuracy(tmp_path: Path) -> None:
    """Its first weights' answers, all the first choice, are kept with the run and judged nowhere."""
    tasks = ("boolq", "piqa")
    runs = [
        write_run(tmp_path / f"{m}{s}", m, "", "base", s, tasks) for m in ("ft_oracle", "ft_practical") for s in (0, 1)
    ]
    for run in runs:
        rows = read_table(run / "metrics.csv")
        if run.name == "ft_oracle1":  # can be run, but nobody answered
            silent = [row for row in rows if row["metric"] == "participants" and row["task"] == "piqa"]
            rows = [row | {"value": "0"} if row in silent else row for row in rows]
        for task in tasks:
            none = "practical" in run.name and task == "boolq"
            known = next(row for row in rows if row["task"] == task and row["metric"] == "best_round")
            rows.append({**known, "metric": "eligible_clients", "value": "0" if none else "20"})
        write_table(run / "metrics.csv", rows)
    tables, curves = zip(*(write_cost(tmp_path, m) for m in ("ft_oracle", "ft_practical")), strict=True)
    collect("default", runs, list(tables), PARAMS, tmp_path / "results", list(curves))
    for name in ("accuracy", "differences", "rounds"):
        found = {(row["method"], row["task"]) for row in read_table(tmp_path / "results" / f"{name}.csv")}
        assert ("ft_practical", "boolq") not in found
    told = {(r["method"], r["task"], r["runs"]) for r in read_table(tmp_path / "results" / "accuracy.csv")}
    assert told == {("ft_oracle", "boolq", "2"), ("ft_oracle", "piqa", "1"), ("ft_practical", "piqa", "2")}
    kept = [row for row in read_table(tmp_path / "results" / "metrics.csv") if row["task"] == "boolq"]
    assert sum(row["method"] == "ft_practical" and row["metric"] == "accuracy" for row in kept) == 2 * 4
    for claim in read_table(tmp_path / "results" / "claims.csv"):
        if "practical" in claim["claim"] and "boolq" in claim["claim"] and claim["source"] == "measured":
            assert claim["verdict"] == "not yet measured"


def test_the_course_over_rounds_is_of_the_base_setting(results: Path) -> None:
    rows = {(r["task"], r["method"], r["round"]): r for r in read_table(results / "rounds.csv")}
    row = rows["boolq", "ft_oracle", "3"]
    assert [float(row[name]) for name in ("mean", "low", "high", "runs")] == pytest.approx([0.3, 0.3, 0.3, 2])
    assert sorted(int(number) for task, method, number in rows if (task, method) == ("boolq", "majority")) == [1, 2, 3]


def test_a_run_that_is_over_keeps_its_last_accuracy() -> None:
    shared = {
        "metric": "accuracy",
        "split": "test",
        "setting": "",
        "task": "boolq",
        "world": "embedded",
        "method": "assyllm",
    }
    runs = {"a": {3: 0.2, 4: 0.4}, "b": {2: 0.5, 3: 0.6}}
    metrics = [
        shared | {"run_id": run, "round": str(n), "value": str(v)}
        for run, course in runs.items()
        for n, v in course.items()
    ]
    found = {row["round"]: (row["mean"], row["runs"]) for row in round_table(metrics)}
    assert found == {3: (pytest.approx(0.4), 2), 4: (pytest.approx(0.5), 2)}  # round 2 is of one run only
    elsewhere = [row | {"setting": "zoo.seed=1"} for row in metrics]  # the base setting on another zoo
    assert round_table(elsewhere) == round_table(metrics)
    assert not round_table([row | {"setting": "partition.alpha=0.1"} for row in metrics])


def test_traffic_that_never_changes_is_told_once() -> None:
    row = {"run_id": "r", "task": "boolq", "setting": "", "metric": "bytes_up", "value": "10"}
    same = [{**row, "round": str(i)} for i in (1, 2, 3)]
    other = [{**row, "run_id": "s", "round": str(i), "value": str(10 + (i == 3))} for i in (1, 2, 3)]
    losses = [{**row, "metric": "loss", "round": str(i)} for i in (1, 2)]
    assert condensed([*same, *other, *losses]) == [{**row, "round": ""}, *other, *losses]
    assert condensed(same[:1]) == same[:1]


def test_questions_of_one_name_in_another_world_are_others() -> None:
    rows = [{"run_id": run, "task": "boolq", "question": "q1", "about": about, "seen": "", "setting": setting,
             "method": "assyllm", "correct": "1"}
            for run, setting, about in (("base-assyllm-zoo0-seed0", "", "kibidi/coat"),
                                        ("base-assyllm-zoo0-seed1", "", "kibidi/coat"),
                                        ("world_1-assyllm-zoo0-seed0", "world.seed=1", "momuto/home"))]  # fmt: skip
    apart = told_apart(rows)
    assert [row["question"] for row in apart] == ["q1", "q1", "q1 about momuto/home"]
    assert {asked(row["task"], row["question"], row["about"]) for row in apart} == {
        ("boolq", "q1", "kibidi/coat"), ("boolq", "q1 about momuto/home", "momuto/home")
    }  # fmt: skip
    table = ablation_table(
        apart, dict.fromkeys((row["run_id"] for row in rows), "embedded"), ["base", "world_1"], PARAMS.evaluate
    )
    assert [row["difference"] for row in table] == ["", ""], "nothing to be paired with"


def test_every_zoo_is_compared_for_itself() -> None:
    def answers(method: str, zoo: int, seed: int, marks: str, task: str = "boolq") -> list[dict[str, str]]:
        setting = f"zoo.seed={zoo}" if zoo else ""
        common = {"run_id": f"base-{method}-zoo{zoo}-seed{seed}", "method": method, "task": task, "setting": setting}
        return [{**common, "question": f"q{i}", "about": f"a{i}", "correct": mark} for i, mark in enumerate(marks)]

    rows = [
        *answers("assyllm", 0, 0, "1111"),
        *answers("assyllm", 0, 0, "1110", "piqa"),
        *answers("assyllm", 1, 0, "0000"),
        *answers("random_blocks", 0, 0, "1100"),
        *answers("random_blocks", 0, 0, "1100", "piqa"),
        *answers("random_blocks", 1, 0, "1000"),
        *answers("ft_oracle", 1, 3, "1111"),  # a seed that assyllm lacks
    ]
    elsewhere = [*answers("assyllm", 0, 0, "1000"), *answers("random_blocks", 0, 0, "1110")]
    rows += [row | {"setting": "world.seed=1", "run_id": f"world_1{row['run_id'][4:]}"} for row in elsewhere]
    found = {(r["zoo"], r["method"], r["task"]): r for r in zoo_table(rows, PARAMS.evaluate)}
    assert [found["0", "random_blocks", task]["behind"] for task in ("all", "boolq", "piqa")] == [0.375, 0.5, 0.25]
    assert found["0", "assyllm", "all"]["mean"] == 0.875
    assert found["0", "assyllm", "all"]["behind"] == ""
    row = found["1", "random_blocks", "all"]
    assert row["low"] <= row["behind"] == -0.25 <= row["high"]
    assert found["1", "ft_oracle", "boolq"]["behind"] == ""
    assert found["0 of world 1", "random_blocks", "all"]["behind"] == -0.5
    assert ("1", "random_blocks", "piqa") not in found


def test_ablations_are_paired_with_the_base_setting_of_the_same_method() -> None:
    def answers(setting: str, method: str, seed: int, marks: str, changed: str) -> list[dict[str, str]]:
        run = f"{setting}-{method}-zoo0-seed{seed}"
        return [
            {
                "run_id": run,
                "method": method,
                "task": "boolq",
                "setting": changed,
                "question": f"q{i}",
                "about": f"a{i}",
                "correct": mark,
            }
            for i, mark in enumerate(marks)
        ]

    rows = [
        *answers("base", "assyllm", 0, "1100", ""),
        *answers("base", "assyllm", 1, "1110", ""),
        *answers("base", "ft_oracle", 0, "1111", ""),
        *answers("beam_1", "assyllm", 0, "1000", "assembling.assyllm.selection.beam=1"),
        *answers("beam_1", "assyllm", 2, "1111", "assembling.assyllm.selection.beam=1"),  # no base run of this seed
    ]
    worlds = {row["run_id"]: "embedded" for row in rows}
    base, beam = ablation_table(rows, worlds, ["base", "beam_1"], PARAMS.evaluate)
    assert (base["setting"], base["mean"], base["difference"]) == ("base", 0.625, "")
    assert (beam["setting"], beam["mean"], beam["runs"]) == ("beam_1", 0.625, 2)
    assert beam["difference"] == pytest.approx(-0.25)  # seed 0 alone is paired
    assert beam["difference_low"] <= -0.25 <= beam["difference_high"] <= 0
    assert beam["changed"] == "assembling.assyllm.selection.beam=1"
