"""The plan of a study: runs, variants and the sections that each rule gets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from assyllm import study
from assyllm.artifacts import ArtifactError
from assyllm.cli import _sections
from assyllm.study import Plan, code_sha, hold, kept

PLAN = Plan(Path(__file__).parents[2] / "params.yaml")


def test_settings_share_what_they_do_not_touch() -> None:
    assert PLAN.variant("download", "alpha_0.1") == "base"
    assert PLAN.variant("quantize", "alpha_0.1") == "base"
    assert PLAN.variant("partition", "alpha_0.1") == "alpha_0.1"
    assert PLAN.variant("score", "alpha_0.1") == "alpha_0.1"
    assert PLAN.variant("split", "int4") == "base"
    assert PLAN.variant("quantize", "int4") == "int4"
    assert PLAN.variant("partition", "opt") == "base"
    assert PLAN.variant("score", "dropout_0.6") == "base"
    assert PLAN.variant("score", "items_1") == "items_1"


def test_studies_share_their_runs() -> None:
    default, full, zoos, check = (PLAN.runs(size) for size in ("default", "full", "zoos", "check"))
    assert len(set(default)) == len(default)
    base = {run for run in default if run.setting == "base"}
    assert base <= set(full)
    assert base <= set(zoos)
    assert set(check) < base
    assert default[0].folder == "data/runs/base/majority/zoo0_seed0"


def test_a_baseline_gets_no_other_baselines_tuning() -> None:
    sections = json.loads(PLAN.sections("baseline", "base", "ft_oracle"))
    assert "ft_oracle" in sections["baselines"]
    assert "ft_practical" not in sections["baselines"]


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
