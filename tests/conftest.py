"""Fixtures that several tests share: a tiny zoo, its pool, tiny tasks, all written once a session.

``tests`` is on the import path because of this file, so that tests say ``from tiny import zoo``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def tiny_params(method: str = "assyllm_paper", **changes: dict):
    """The repository's params.yaml made tiny; ``changes`` maps sections to keys to overwrite.

    Sections ``selection``, ``adapter`` and ``head`` are those of ``method``.
    """
    from assyllm import params as P

    raw = P.read_yaml(ROOT / "params.yaml")
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


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How often the tiny study is killed; 0 if not asked for."""
    return request.config.getoption("--kills")


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny study was run, by Snakemake on two cores."""
    from tiny import study as tiny

    folder = tmp_path_factory.mktemp("study")
    tiny.write_params(folder, tiny.tiny_params())
    tiny.snakemake(folder, "--cores", "2")
    return folder


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


@pytest.fixture(scope="session")
def tiny_pool(tiny_folder):
    """The tiny pool at float32."""
    from assyllm.quantizer.pool import open_pool

    return open_pool(tiny_folder / "pool")
