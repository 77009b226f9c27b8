"""The plan of a study: runs, variants and the sections that each rule gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from assyllm import params as P
from assyllm import study
from assyllm.artifacts import ArtifactError
from assyllm.cli import _sections, app
from assyllm.study import Plan, code_sha, hold, kept

ROOT = Path(__file__).parents[2]
PLAN = Plan(ROOT / "params.yaml")


def test_settings_share_what_they_do_not_touch() -> None:
    assert PLAN.variant("download", "alpha_0.1") == "base"
    assert PLAN.variant("quantize", "alpha_0.1") == "base"
    assert PLAN.variant("partition", "alpha_0.1") == "alpha_0.1"
    assert PLAN.variant("score", "alpha_0.1") == "alpha_0.1"
    assert PLAN.variant("split", "int4") == "base"
    assert PLAN.variant("quantize", "int4") == "int4"
    assert PLAN.variant("partition", "opt") == "base"
    assert PLAN.variant("score", "dropout_0.6") == "base"
    assert PLAN.variant("score", "w_0") == "base"
    assert PLAN.sections("score", "w_0") == PLAN.sections("score") != PLAN.sections("score", "items_1")
    assert PLAN.sections("federate", "w_0") != PLAN.sections("federate")
    assert PLAN.variant("score", "items_1") == "items_1"


@pytest.mark.committed
def test_studies_share_their_runs() -> None:
    default, full, zoos, check = (PLAN.runs(size) for size in ("default", "full", "zoos", "check"))
    assert len(set(default)) == len(default)
    base = {run for run in default if run.setting == "base"}
    assert base <= set(full)
    assert {run for run in base if run.method in {r.method for r in zoos}} <= set(zoos)
    assert set(check) < base
    assert default[0].folder == "data/runs/base/majority/zoo0_seed0"


def test_a_baseline_gets_no_other_baselines_tuning() -> None:
    sections = json.loads(PLAN.sections("baseline", "base", "ft_oracle"))
    assert "ft_oracle" in sections["baselines"]
    assert "ft_practical" not in sections["baselines"]


def test_bits_of_a_frozen_base_reach_the_methods_that_have_one() -> None:
    for rule in ("baseline", "cost"):
        for method in ("lora", "lora_all", "fedadapter", "fwdllm", "ft_oracle", "qlora", "one_model_head"):
            alike = PLAN.sections(rule, "base", method) == PLAN.sections(rule, "base_16", method)
            assert alike == (method not in P.FROZEN_BASE)


def test_an_edit_reaches_the_runs_that_read_it_and_no_others(tmp_path: Path) -> None:
    def changed(**edits) -> study.Plan:
        raw = yaml.safe_load((ROOT / "params.yaml").read_text())
        for dotted, value in edits.items():
            *parents, leaf = dotted.split("__")
            node = raw
            for parent in parents:
                node = node[parent]
            node[leaf] = value
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
        return study.Plan(tmp_path / "params.yaml")

    def reached(plan: study.Plan, rule: str) -> set[str]:
        known = (
            P.ASSEMBLING if rule == "federate" else P.BASELINES if rule == "baseline" else (*P.ASSEMBLING, *P.BASELINES)
        )
        return {m for m in known if plan.sections(rule, "base", m) != PLAN.sections(rule, "base", m)}

    for edits, rule, methods in (
        ({"quantize__budget_bits": 5.0}, "cost", {*P.ASSEMBLING}),
        ({"blocks__members": ["llama", "vicuna", "opt", "roberta"], "features__pairs": [["llama", "opt"]]}, "cost",
         {*P.ASSEMBLING}),
        ({"zoo__models__bert__steps": 5}, "baseline", set()),
        ({"zoo__models__bert__steps": 5}, "cost", set()),
        ({"zoo__models__bert__licence": "MIT"}, "federate", set()),
        ({"baselines__closed_form__rounds": 5}, "baseline", {*P.HEADS, *P.ALL_MODELS}),
        ({"baselines__closed_form__rounds": 5}, "cost", set()),
        ({"baselines__lora__boolq__rounds": 5}, "cost", set()),
        ({"baselines__lora__boolq__rounds": 5}, "baseline", {"lora"}),
        ({"zoo__pretrain__rows": 5}, "cost", set()),
        ({"zoo__pretrain__rows": 5}, "baseline", set()),
        ({"baselines__ft_oracle__boolq__rounds": 5}, "cost", set()),
        ({"baselines__ft_oracle__boolq__rounds": 5}, "baseline", {"ft_oracle", *P.SHARES}),
        ({"federated__liars": 0.2}, "baseline", set()),
        ({"federated__check_sums": True}, "baseline", set()),
        ({"federated__check_sums": True}, "federate", {*P.ASSEMBLING}),
        ({"federated__row_norm": 5.0}, "federate", {*P.ASSEMBLING}),
        ({"federated__dropout": 0.2}, "baseline", {*P.BASELINES}),
        ({"cost__tokens": 128}, "cost", {*P.ASSEMBLING, *P.BASELINES}),
        ({"cost__device": "orin"}, "cost", set()),
    ):  # fmt: skip
        assert reached(changed(**edits), rule) == methods, (edits, rule)
    narrow = {f"baselines__{m}__{t}__rank": 4 for m in ("lora", "lora_all") for t in P.PUBLISHED}
    assert reached(changed(**narrow), "cost") == {"lora", "lora_all"}
    closed = changed(settings__mine={"baselines.closed_form.rounds": 5})
    assert (closed.variant("cost", "mine"), closed.variant("split", "mine")) == ("base", "base")
    assert PLAN.models("base", "lora") == ["llama"]
    assert PLAN.models("opt", "ft_oracle") == ["opt"]
    assert len(PLAN.models("base", "zero_shot")) == 5


def test_settings_that_are_alike_are_refused(tmp_path: Path) -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    for value, words in (
        ({}, "changes nothing, as base does"),
        ({"partition.alpha": 0.1}, r"is the same as alpha_0\.1"),
    ):
        raw["settings"]["mine"] = value
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
        with pytest.raises(P.ParamsError, match=f"settings.mine: {words}"):
            study.Plan(tmp_path / "params.yaml")


def test_a_model_gets_no_other_models_shape() -> None:
    assert set(json.loads(PLAN.sections("download", "base", model="opt"))["zoo"]["models"]) == {"opt"}
    with_base = json.loads(PLAN.sections("download", "base", model="vicuna"))["zoo"]["models"]
    assert set(with_base) == {"llama", "vicuna"}


def test_code_hash_follows_content_not_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    copy = tmp_path / "assyllm"
    shutil.copytree(study.SOURCE, copy)
    monkeypatch.setattr(study, "SOURCE", copy)
    fresh = code_sha.__wrapped__
    before = fresh("cost")
    (copy / "cost" / "point.py").touch()
    assert fresh("cost") == before
    with open(copy / "cost" / "point.py", "a") as handle:
        handle.write("# changed\n")
    assert fresh("cost") != before


def test_one_writer_at_a_time_and_none_after_a_kill(tmp_path: Path) -> None:
    code = f"import time; from assyllm.study import hold; hold({str(tmp_path)!r}); print('held', flush=True)"
    code += "; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            hold(tmp_path)
        other.kill()
    hold(tmp_path)
    hold(tmp_path)


def test_a_jobs_json_is_kept_in_a_file_named_by_its_content(tmp_path: Path) -> None:
    one = kept('{"a": 1}', tmp_path)
    assert one == kept('{"a": 1}', tmp_path)
    assert one != kept('{"a": 2}', tmp_path)
    assert Path(one.removeprefix("@")).read_text() == '{"a": 1}'
    assert _sections(one) == _sections('{"a": 1}') == '{"a": 1}'
    with pytest.raises(ArtifactError, match=r"--params @nowhere\.json: No such file"):
        _sections("@nowhere.json")


def test_a_job_refuses_code_that_was_not_planned(tmp_path: Path) -> None:
    asked = ["figure", "--params", "{}", "--name", "fleet", "--code"]
    where = ["--results", str(tmp_path), "--out", str(tmp_path)]
    planned = study.code_sha("figure", "fleet")
    for code, told in (("0" * 12, "the code has changed"), (planned, "figures")):  # then its parameters are looked at
        error = CliRunner().invoke(app, [*asked, code, *where]).exception
        assert told in str(error)


def test_the_users_own_models_and_corpus_are_read_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (tmp_path / "text.txt").write_text("a")
    raw = P.read_yaml(ROOT / "params.yaml")
    raw["zoo"]["models"]["llama"] |= {"source": "local", "path": str(folder), "licence": "mine"}
    raw["zoo"]["pretrain"]["corpus"] = str(tmp_path / "text.txt")
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    plan = study.Plan(path)
    assert plan.local_files("base", "llama") == [folder / "config.json", tmp_path / "text.txt"]
    before = study.contents(*plan.local_files("base", "llama"))
    (folder / "config.json").write_text("[]")
    changed = study.contents(*plan.local_files("base", "llama"))
    assert changed != before
    monkeypatch.setattr(study, "LARGE", 0)
    large = study.contents(folder / "config.json")
    os.utime(folder / "config.json", (1, 1))
    assert study.contents(folder / "config.json") != large


def test_a_relative_data_folder_is_the_shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", str(tmp_path / "shell"))
    for name in ("PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    for given, meant in (("../mine", tmp_path / "mine"), (str(tmp_path), tmp_path)):
        monkeypatch.setenv("ASSYLLM_DATA", given)
        study.job_environment()
        assert os.environ["ASSYLLM_DATA"] == str(meant)


def test_the_pool_of_the_default_study_is_all_that_its_results_need() -> None:
    plan = study.Plan(ROOT / "params.yaml")
    assert {setting for setting, _ in plan.pools("default")} >= {*plan.params.study.default.precision.settings, "base"}


def test_which_other_figures_there_are_redraws_none(tmp_path: Path) -> None:
    raw = P.read_yaml(ROOT / "params.yaml")
    raw["figures"]["names"].remove("fleet")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    fewer, all_ = study.Plan(tmp_path / "params.yaml"), study.Plan(ROOT / "params.yaml")
    assert fewer.sections("figure") == all_.sections("figure")
