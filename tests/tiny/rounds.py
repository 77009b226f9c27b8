"""Runs of the methods that assemble, on the tiny zoo."""

from __future__ import annotations

from assyllm.federated.context import Settings
from assyllm.federated.rounds import Rounds
from assyllm.federated.state import State
from assyllm.federated.task import open_task
from assyllm.quantizer.pool import open_pool
from conftest import tiny_params


def rounds(
    folder, task: str = "piqa", scores: tuple[str, ...] = ("scores",), method: str = "assyllm_paper", **changes
) -> Rounds:
    p = tiny_params(method, **changes)
    own = p.assembling.of(method)
    settings = Settings(own.selection, p.comparator, own.adapter, own.head, p.federated)
    pool = open_pool(folder / "pool8")
    data = open_task(pool, task, p, folder / "tasks", folder / "partition", [folder / s for s in scores])
    return Rounds(pool, data, settings, 0, range(12))


def summary(state: State) -> tuple:
    tensors, raw = state.dump()
    raw = {key: value for key, value in raw.items() if key != "seconds"}
    return raw, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
