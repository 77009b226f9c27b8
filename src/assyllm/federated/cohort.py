"""Which device a client has, who answers in a round, and whose answer is in time.

A client that **drops out** does nothing in the round. A **straggler** does all of it, but its reply comes after the
server, which waits for nobody, has closed the round: the reply is thrown away, also its votes, and its work and its
bytes in both directions are spent for nothing. To what is learnt a straggler is a dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from assyllm import seeding
from assyllm.artifacts import ArtifactError
from assyllm.params import Fleet
from assyllm.results import read_table

Counted = Callable[[int, Sequence[int]], tuple[list[int], list[int]]]


def device_memory(seed: int, fleet: Fleet, clients: int) -> list[int]:
    """The memory class (GB) of every client: the fleet's exact shares, shuffled.

    Shares that do not give whole clients are rounded to the largest remainders.
    """
    classes = sorted(fleet.memory_gb, reverse=True)
    exact = [fleet.memory_gb[memory] * clients for memory in classes]
    counts = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(classes)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: clients - sum(counts)]:
        counts[i] += 1
    devices = np.repeat(classes, counts)
    return [int(memory) for memory in seeding.rng("fleet", seed).permutation(devices)]


def participating(table: Path, method: str, model: str) -> Mapping[int, bool]:
    """Memory class (GB) -> whether it can run ``method``, from the method's cost table.

    Raises:
        ArtifactError: no rows for the model, another method's table, or no cost table.
    """
    rows = [row for row in read_table(table) if row.get("model") == model]
    if not rows:
        raise ArtifactError(f"{table}: no rows for {model!r}")
    if lacking := [name for name in ("method", "memory_gb", "participates") if name not in rows[0]]:
        raise ArtifactError(f"{table}: no cost table, it has no column {lacking[0]}")
    if {row["method"] for row in rows} != {method}:
        raise ArtifactError(f"{table}: the cost table of {rows[0]['method']}, {method}'s is expected")
    return {int(row["memory_gb"]): row["participates"] == "1" for row in rows}


def eligible_clients(cost: Path, method: str, model: str, memory_gb: Sequence[int]) -> list[int]:
    """Numbers of the clients whose device can run ``method`` on ``model``.

    Raises:
        ArtifactError: the table is another method's, or has no row for the model or for a memory class.
    """
    classes = participating(cost, method, model)
    for memory in sorted(set(memory_gb)):
        if memory not in classes:
            raise ArtifactError(f"{cost}: no row for {model} on devices of {memory} GB")
    return [client for client, memory in enumerate(memory_gb) if classes[memory]]


def sample(seed: int, round_: int, eligible: Sequence[int], size: int, dropout: float = 0.0) -> list[int]:
    """Clients that answer in a round: ``size`` of ``eligible`` (all if fewer), less those that drop out."""
    size = min(size, len(eligible))
    drawn = seeding.rng("cohort", seed, round_).choice(np.asarray(eligible), size=size, replace=False)
    return answering(seed, round_, drawn, dropout)


def once_each(
    seed: int,
    rounds: Iterable[int],
    eligible: Sequence[int],
    size: int,
    dropout: float,
    counted: Counted,
    least: int = 1,
    order: str = "once",
) -> list[tuple[list[int], list[int]]]:
    """Who answers in rounds of sums that may count nobody twice: those whose reply counts, and those whose does not.

    The next ``size`` that wait are asked, in a drawn order. Who drops out, or whose reply does not count, waits again,
    behind the others; the list ends early with the round after which fewer than ``least`` wait.

    Args:
        counted: of a round and those that answer, whose reply counts and whose does not.
        least: a reply counts together with so many only.
        order: which order is drawn. Two kinds of sums over the same cohorts, less who drops out, would tell one
            client's by subtraction.
    """
    waiting = [int(client) for client in seeding.rng("cohort", seed, order).permutation(np.asarray(eligible))]
    turns = []
    for round_ in rounds:
        if len(waiting) < least:
            break
        asked, waiting = waiting[:size], waiting[size:]
        clients, late = counted(round_, answering(seed, round_, asked, dropout))
        waiting += [client for client in asked if client not in clients]
        turns.append((clients, late))
    return turns


def answering(seed: int, round_: int, drawn: Sequence[int] | np.ndarray, dropout: float) -> list[int]:
    """Those of ``drawn`` that do not drop out, in ascending order."""
    lost = seeding.rng("dropout", seed, round_).random(len(drawn)) < dropout
    return sorted(int(client) for client, gone in zip(drawn, lost, strict=True) if not gone)


def in_time(seed: int, round_: int, answering: Sequence[int], stragglers: float) -> tuple[list[int], list[int]]:
    """Clients whose reply counts, and those whose reply comes too late: each late with chance ``stragglers``.

    A client's draw depends on seed, round and its own number only.
    """
    if not stragglers:
        return list(answering), []
    late = {c for c in answering if seeding.rng("straggler", seed, round_, c).random() < stragglers}
    return [c for c in answering if c not in late], [c for c in answering if c in late]
