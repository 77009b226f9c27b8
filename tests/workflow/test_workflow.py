"""The workflow as a user meets it: dry runs, a small study end to end, nothing to do twice, resume after a kill."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiny.study import (
    ROOT,
    SNAKEMAKE,
    TIMED,
    dvc_environment,
    dvc_repository,
    products,
    snakemake,
    tiny_params,
    write_params,
)

PRESETS = [ROOT, *sorted(path.parent for path in (ROOT / "presets").glob("*/params.yaml"))]
pytestmark = pytest.mark.workflow


def planned(folder: Path, *arguments: str) -> set[str]:
    output = snakemake(folder, "--cores", "2", *arguments, "-n", "--quiet", "rules")
    pairs = (line.split() for line in output.splitlines())
    targets = {"total", "all", "results", "pool", "figures", "check"}
    return {p[0] for p in pairs if len(p) == 2 and p[1].isdigit()} - targets


@pytest.mark.parametrize(
    ("folder", "target"),
    [
        *((ROOT, target) for target in ("all", "full", "check", "pool", "results", "tuning")),
        *((folder, "all") for folder in PRESETS[1:]),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_every_target_and_every_preset_plans(folder: Path, target: str, tmp_path: Path) -> None:
    shutil.copy(folder / "params.yaml", tmp_path / "params.yaml")
    jobs = planned(tmp_path, target)
    results = {"check": "collect", "results": "collect"}
    last = {"all": "figure", "full": "figure", "pool": "quantize", "tuning": "tune", **results}[target]
    assert last in jobs
    assert "download" in jobs
    assert ("federate" in jobs) == (target not in ("pool", "tuning"))


def test_ablations_share_what_they_do_not_touch(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    output = snakemake(tmp_path, "--cores", "2", "-n", "ablations")
    made = {word for line in output.splitlines() if line.strip().startswith("output:") for word in line.split()}
    assert "data/runs/alpha_0.1/assyllm/zoo0_seed0" in {word.rstrip(",") for word in made}
    assert not any("data/zoo/" in word and "data/zoo/base" not in word for word in made)  # no setting trains a zoo
    assert "figures/ablations/robustness.png," in made


def test_default_study_has_few_torch_jobs(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    lines = snakemake(tmp_path, "--cores", "2", "-n", "--quiet", "rules").splitlines()
    counts = {p[0]: int(p[1]) for p in (line.split() for line in lines) if len(p) == 2 and p[1].isdigit()}
    torch_rules = ("download", "split", "sensitivity", "quantize", "score", "federate", "precision", "baseline")
    assert 0 < sum(counts.get(rule, 0) for rule in torch_rules) <= 80  # a job imports torch: 2 to 4 CPU-seconds


def test_lint_is_clean(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    assert "Congratulations" in snakemake(tmp_path, "--lint")


def test_bad_parameters_stop_before_any_rule(tmp_path: Path) -> None:
    raw = tiny_params()
    raw["partition"]["alhpa"] = 1
    write_params(tmp_path, raw)
    output = snakemake(tmp_path, "--cores", "1", check=False)
    assert "params.yaml: partition.alhpa: unknown key, did you mean 'alpha'?" in output
    assert not (tmp_path / "data").exists()


def test_study_makes_tables_and_figures(study: Path) -> None:
    made = products(study)
    for name in (
        "memory_wall",
        "quantizer",
        "model_sizes",
        "assembled_models",
        "algorithm_baselines",
        "fleet",
        "compatibility_heatmaps",
    ):
        assert made[f"figures/{name}.png"].startswith(b"\x89PNG")
        assert made[f"figures/{name}.pdf"].startswith(b"%PDF")
        assert made[f"figures/{name}.csv"].count(b"\n") > 1
    for table in (
        "metrics",
        "runs",
        "accuracy",
        "differences",
        "models",
        "cost",
        "claims",
        "paper",
        "quantizer",
        "model_sizes",
    ):
        assert made[f"data/results/{table}.csv"].count(b"\n") > 1


def test_second_run_has_nothing_to_do_within_5_s_of_cpu(study: Path) -> None:
    seconds = []
    for _ in range(2):  # beside other work a processor's seconds are shorter
        before = os.times()
        assert "Nothing to be done" in snakemake(study, "--cores", "2")
        after = os.times()
        seconds.append(after.children_user - before.children_user + after.children_system - before.children_system)
    assert min(seconds) <= 5


def test_changes_rerun_what_depends_on_them(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(study, folder, symlinks=True)
    raw = tiny_params()
    raw["figures"]["dpi"] = 99
    write_params(folder, raw)
    assert planned(folder) == {"figure"}
    raw = tiny_params()
    raw["partition"]["alpha"] = 0.5
    write_params(folder, raw)
    again = {"partition", "score", "federate", "precision", "baseline", "swap", "features", "collect", "figure"}
    assert planned(folder) == again
    write_params(folder, tiny_params())
    assert planned(folder) == set()


@pytest.mark.parametrize("target", ["all", "results"])
def test_a_fresh_clone_with_committed_tables_runs_the_whole_study(study: Path, tmp_path: Path, target: str) -> None:
    write_params(tmp_path, tiny_params())
    shutil.copytree(study / "data" / "results", tmp_path / "data" / "results")
    shutil.copytree(study / "figures", tmp_path / "figures")
    whole = {
        "download",
        "tasks",
        "split",
        "sensitivity",
        "quantize",
        "precision",
        "partition",
        "cost",
        "score",
        "federate",
        "baseline",
        "collect",
    }
    assert whole <= planned(tmp_path, target)


def test_figures_alone_need_tables_and_nothing_else(study: Path, tmp_path: Path) -> None:
    write_params(tmp_path, tiny_params())
    shutil.copytree(study / "data" / "results", tmp_path / "data" / "results")
    only = ["--snakefile", str(ROOT / "workflow" / "rules" / "figures.smk")]
    assert planned(tmp_path, *only) == {"figure"}


def killed(command: list[str], folder: Path, kills: int, seed: str, environment: dict[str, str] | None = None) -> int:
    """Start a command and SIGKILL it and its jobs at a random moment, ``kills`` times; how often it was at work."""
    draw = random.Random(seed)
    caught = 0
    for _ in range(kills):
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        time.sleep(draw.uniform(4, 14))
        caught += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
    return caught


def test_one_core_gives_the_same_bytes_and_a_killed_run_goes_on(study: Path, tmp_path: Path, kills: int) -> None:
    """From models to two runs; with ``--kills`` the whole study."""
    folder = tmp_path / "killed"
    write_params(folder, tiny_params())
    runs = [f"data/runs/base/{method}/zoo0_seed0" for method in ("ft_oracle", "assyllm")]
    command = ["--cores", "1", *(() if kills else runs)]
    assert killed([*SNAKEMAKE, "--directory", str(folder), *command], folder, kills or 3, "snakemake")
    snakemake(folder, *command)
    for made in ("data/zoo", "data/quantized/base", *runs):
        assert contents(folder / made) == contents(study / made)
    assert not kills or products(folder) == products(study)


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.stem not in TIMED)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_killed_dvc_repro_goes_on(study: Path, tmp_path: Path, kills: int) -> None:
    if not kills:
        pytest.skip("takes minutes: pytest tests/workflow --kills 10")
    dvc_repository(tmp_path)
    command = [sys.executable, "-m", "dvc"]
    subprocess.run([*command, "init", "--quiet", "--force"], cwd=tmp_path, check=True)
    assert killed([*command, "repro"], tmp_path, kills, "dvc", dvc_environment())
    done = subprocess.run([*command, "repro"], cwd=tmp_path, env=dvc_environment(), capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert products(tmp_path) == products(study)


def test_a_second_writer_is_refused_in_one_line_and_may_plan(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "copy", symlinks=True)
    study = tmp_path / "copy"
    raw = tiny_params()
    raw["figures"]["dpi"] = 99
    write_params(study, raw)
    folder = str(study / ".snakemake")
    code = f"import time; from assyllm.study import hold; hold({folder!r}); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        output = snakemake(study, "--cores", "1", check=False)
        assert planned(study) == {"figure"}
        other.kill()
    assert "another run is at work in this folder" in output
