"""Fixtures that several tests share: a tiny zoo, its pool, tiny tasks, all written once a session.

``tests`` is on the import path because of this file, so that tests say ``from tiny import zoo``.
"""

from __future__ import annotations

import copy
import fcntl
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@cache
def _raw_params() -> dict:
    from assyllm import params as P

    return P.read_yaml(ROOT / "params.yaml")


def tiny_params(method: str = "assyllm_paper", **changes: dict):
    """The repository's params.yaml made tiny; ``changes`` maps sections to keys to overwrite.

    Sections ``selection``, ``adapter`` and ``head`` are those of ``method``.
    """
    from assyllm import params as P

    raw = copy.deepcopy(_raw_params())
    raw["partition"]["clients"] = 12
    raw["federated"]["clients_per_round"] = 5
    raw["comparator"]["public_texts"] = 48
    own = raw["assembling"][method]
    own["head"]["rounds"] = 3
    for section, keys in changes.items():
        (own if section in own else raw)[section] |= keys
    return P.validate(P.Params, raw)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=0, help="SIGKILLs of a tiny study, by Snakemake and by DVC")
    parser.addoption("--regenerate", action="store_true", help="write tests/golden anew instead of comparing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, what else needs the tiny study last: of two processes neither waits for the other.

    README tells of the committed tables and of params.yaml as it came; where a study was run (times are measured anew)
    or a parameter edited, what holds them together is skipped.
    """
    places = {"test_workflow": 0, "test_report": 2, "test_golden": 2}
    items.sort(key=lambda item: places.get(item.path.stem, 1))
    edited = ["git", "diff", "--quiet", "HEAD", "--", "params.yaml"]  # 1: it was; 128: no checkout
    if (ROOT / "data" / "runs").is_dir():
        why = "a study was run here: its tables are not those that README tells of"
    elif shutil.which("git") and subprocess.run(edited, cwd=ROOT, capture_output=True).returncode == 1:
        why = "params.yaml was edited: README tells of the one that the repository comes with"
    else:
        return
    for item in items:
        if item.get_closest_marker("committed"):
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How often the tiny study is killed; 0 if not asked for."""
    return request.config.getoption("--kills")


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny study was run, by Snakemake on two cores: made once, each test process has a copy."""
    from tiny import study as tiny

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own
    folder, made = shared / "made", shared / "made.done"
    with open(shared / "made.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            tiny.write_params(folder, tiny.tiny_params())
            tiny.snakemake(folder, "--cores", "2")
            made.touch()
    return Path(shutil.copytree(folder, own / "study", symlinks=True))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A folder with zoo/, tasks/, partition/, pool/ (float32) and pool8/ (INT8)."""
    from assyllm.params import sections_json
    from assyllm.quantizer.pool import quantize_pool
    from assyllm.stages import split
    from tiny import zoo

    folder = tmp_path_factory.mktemp("tiny")
    zoo.write_zoo(folder / "zoo")
    zoo.write_tasks(folder / "tasks")
    zoo.write_partition(folder / "partition")
    split.run(sections_json(tiny_params(), split.SECTIONS), "code", folder / "zoo", folder / "pool")
    int8 = tiny_params(quantize={"scheme": "uniform", "bits": 8, "rounding": "nearest"}).quantize
    quantize_pool(folder / "pool", folder / "pool8", int8)
    return folder


@pytest.fixture(scope="module")
def scored(tiny_folder):
    """Scores in one shard and in two, and cost tables."""
    from assyllm import params as P
    from assyllm.results import write_table
    from assyllm.stages import score

    p = tiny_params()
    where = (tiny_folder / "pool8", tiny_folder / "tasks", tiny_folder / "partition")
    text = P.sections_json(p, score.SECTIONS)
    score.run(text, "code", *where, 0, tiny_folder / "scores")
    two = P.sections_json(tiny_params(comparator={"shards": 2}), score.SECTIONS)
    for shard in (0, 1):
        score.run(two, "code", *where, shard, tiny_folder / f"scores{shard}")
    for method in P.ASSEMBLING:
        everyone = [{"method": method, "model": "pool", "memory_gb": gb, "participates": 1} for gb in p.fleet.memory_gb]
        write_table(tiny_folder / "cost" / f"{method}.csv", everyone)
    return tiny_folder


@pytest.fixture(scope="session")
def tiny_pool(tiny_folder):
    """The tiny pool at float32."""
    from assyllm.quantizer.pool import open_pool

    return open_pool(tiny_folder / "pool")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Points huggingface_hub, in this process, at a server and an empty cache: ``hub_cache(address)``."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    def point(address: str) -> Path:
        close_session()
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        return tmp_path / "cache"

    yield point
    close_session()


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """The tables of a made-up study, to be read only."""
    from tiny.tables import write_results

    return write_results(tmp_path_factory.mktemp("collect"))
