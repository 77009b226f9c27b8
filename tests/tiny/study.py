"""The tiny study: params.yaml made small, run by Snakemake or DVC in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"),
             "--workflow-profile", str(ROOT / "profiles" / "default")]  # fmt: skip


def snakemake(folder: Path, *arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        [*SNAKEMAKE, "--directory", str(folder), *arguments], capture_output=True, text=True, cwd=folder
    )
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, output[-4000:]
    return output


def tiny_params() -> dict:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    changes = yaml.safe_load((ROOT / "tests" / "workflow" / "tiny.yaml").read_text())
    for member in raw["zoo"]["models"].values():
        member["steps"] = 12
    for method in ("ft_oracle", "ft_practical"):
        for tuning in raw["baselines"][method].values():
            tuning["rounds"] = 4
    raw["baselines"]["evaluate_every"] = raw["baselines"]["test_every"] = 2
    for dotted, value in changes.items():
        node = raw
        *parents, leaf = dotted.split(".")
        for part in parents:
            node = node[part]
        assert leaf in node, dotted
        node[leaf] = value
    return raw


TIMED = ("timings", "swap_timeline", "swap_ablation")


def write_params(folder: Path, raw: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


def products(folder: Path) -> dict[str, bytes]:
    """Every table and figure but wall times (the swapper's are times too, and two of the claims in the figure)."""
    files = [*(folder / "data" / "results").glob("*"), *(folder / "figures").glob("*")]
    found = {str(f.relative_to(folder)): f.read_bytes() for f in files if f.is_file() and f.stem not in TIMED}
    return {name: content for name, content in found.items() if not name.startswith("figures/claims.")}


def dvc_repository(folder: Path) -> None:
    """A repository with the tiny study's params, for ``dvc repro``: this one's files, its history left out."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith(("data/", "figures/", "tests/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    write_params(folder, tiny_params())
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)


def dvc_environment() -> dict[str, str]:
    """What ``dvc repro`` needs to find this interpreter's Snakemake."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
