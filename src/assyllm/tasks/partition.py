"""Who holds which training item: a Dirichlet partition over clients by label, topic or quantity.

For each group of items (those with one answer index, one topic, or all), shares of the clients are drawn from
Dirichlet(alpha); items are dealt to those shares. alpha -> infinity gives every client the same mixture,
small alpha gives most of a group to few clients (paper section 4.1: 200 clients, alpha = 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from assyllm import results, seeding
from assyllm.artifacts import ArtifactError
from assyllm.tasks.record import Question

By = Literal["label", "topic", "quantity"]


def partition(questions: Sequence[Question], task: str, clients: int, alpha: float, by: By, seed: int) -> np.ndarray:
    """The owner of every item.

    Within a group each client gets the floor or the ceiling of its share (systematic sampling over shuffled
    items and clients). Where items >= clients, a client left empty takes an item from the largest client.

    Args:
        questions: N items.
        clients: number of clients.
        alpha: concentration, > 0.
        seed: of the run; the draw does not depend on alpha beyond the Dirichlet itself.

    Returns:
        int64 [N], client numbers in 0..clients-1.

    Raises:
        ArtifactError: no clients, or an alpha that is not above 0.
    """
    if clients < 1 or not alpha > 0:
        raise ArtifactError(f"{task}: {clients} clients, alpha {alpha}: from 1, and above 0, are expected")
    owners = np.zeros(len(questions), dtype=np.int64)
    for group, items in _groups(questions, by).items():
        draw = seeding.rng("partition", seed, task, by, group)
        order = draw.permutation(clients)
        weights = draw.gamma(alpha, size=clients) if alpha < 1e6 else np.ones(clients)
        if not weights.sum() > 0:  # every gamma underflowed (alpha << 1/clients): one client takes all
            weights = np.eye(clients)[draw.integers(clients)]
        edges = np.cumsum(weights[order]) / weights.sum()
        edges[-1] = 1.0
        points = (np.arange(len(items)) + draw.random()) / len(items)
        slots = np.minimum(np.searchsorted(edges, points, side="right"), clients - 1)
        owners[draw.permutation(items)] = order[slots]
    _fill_empty(owners, clients)
    return owners


def capped(owners: np.ndarray, most: int | None, task: str, seed: int) -> np.ndarray:
    """Owners ``[N]`` of whom none holds more than ``most`` items; an item taken away has owner -1.

    Which items a client keeps is drawn; those under a smaller cap are among those under a greater one.
    """
    if most is None:
        return owners
    kept = np.full_like(owners, -1)
    order = seeding.rng("items_per_client", seed, task).permutation(len(owners))
    for client in np.unique(owners):
        kept[order[owners[order] == client][:most]] = client
    return kept


def _groups(questions: Sequence[Question], by: By) -> dict[str, np.ndarray]:
    keys = {
        "label": lambda q: str(q.answer),
        "topic": lambda q: q.topic,
        "quantity": lambda q: "all",
    }
    groups: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(keys[by](question), []).append(number)
    return {key: np.array(groups[key]) for key in sorted(groups)}


def _fill_empty(owners: np.ndarray, clients: int) -> None:
    """Give each empty client the last item of the largest one, while there are items enough."""
    held = np.bincount(owners, minlength=clients)
    if len(owners) < clients:
        return
    for client in np.flatnonzero(held == 0):
        largest = int(held.argmax())
        owners[np.flatnonzero(owners == largest)[-1]] = client
        held[largest] -= 1
        held[client] += 1


def counts(questions: Sequence[Question], owners: np.ndarray, task: str, by: By) -> list[dict[str, object]]:
    """Rows ``task, client, kind, value, items``: each client's items by label (and topic, if dealt so)."""
    table: dict[tuple[int, str, str], int] = {}
    for question, owner in zip(questions, owners, strict=True):
        if owner < 0:
            continue
        kinds = [("label", str(question.answer))] + ([("topic", question.topic)] if by == "topic" else [])
        for kind, value in kinds:
            key = (int(owner), kind, value)
            table[key] = table.get(key, 0) + 1
    return [
        {"task": task, "client": client, "kind": kind, "value": value, "items": items}
        for (client, kind, value), items in sorted(table.items())
    ]


COUNT_COLUMNS = ("task", "client", "kind", "value", "items")


def write_owners(path: Path, questions: Sequence[Question], owners: np.ndarray) -> None:
    """Write ``client,question`` rows, by client and then in the order of the items; none for owner -1."""
    order = [i for i in np.argsort(owners, kind="stable") if owners[i] >= 0]
    rows = [{"client": int(owners[i]), "question": questions[i].id} for i in order]
    results.write_table(path, rows, columns=("client", "question"))


def read_owned(path: Path, questions: Sequence[Question], clients: int, most: int | None = None) -> list[list[int]]:
    """Per client the indices of its items in ``questions``.

    Args:
        most: items that a client may hold (``partition.items_per_client``); None: all items are dealt.

    Raises:
        ArtifactError: the file names an unknown client or question, deals an item twice, or not every item (without
            ``most``), or more to a client than ``most``.
    """
    index = {question.id: number for number, question in enumerate(questions)}
    owned: list[list[int]] = [[] for _ in range(clients)]
    dealt = set()
    for row in results.read_table(path):
        if not row.get("client", "").isdecimal() or "question" not in row:
            raise ArtifactError(f"{path}: a row {dict(row)}; a client's number and a question are expected")
        client, name = int(row["client"]), row["question"]
        if name not in index or not 0 <= client < clients or name in dealt:
            raise ArtifactError(f"{path}: client {client}, question {name!r} does not fit the tasks; deal again")
        dealt.add(name)
        owned[client].append(index[name])
    if most is not None and max(map(len, owned)) > most:
        raise ArtifactError(f"{path}: a client holds more than {most} items; deal again")
    if most is None and len(dealt) != len(index):
        raise ArtifactError(f"{path}: {len(dealt)} of {len(index)} items are dealt; deal again")
    return [sorted(items) for items in owned]
