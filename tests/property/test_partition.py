"""Partitions over clients are exact whatever the data, the concentration and the number of clients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assyllm.artifacts import ArtifactError
from assyllm.tasks.partition import capped, counts, partition, read_owned
from assyllm.tasks.record import Question


def asked(labels: list[int], topics: list[str] | None = None) -> list[Question]:
    topics = topics or ["t"] * len(labels)
    return [
        Question(f"q{i}", "", "which ?", ("a", "b", "c"), label, topic)
        for i, (label, topic) in enumerate(zip(labels, topics, strict=True))
    ]


@pytest.mark.parametrize(("clients", "alpha"), [(0, 1.0), (5, 0.0), (5, float("nan"))])
def test_no_clients_or_no_concentration_are_refused(clients, alpha) -> None:
    with pytest.raises(ArtifactError, match=f"task: {clients} clients, alpha {alpha}"):
        partition(asked([0, 1]), "task", clients, alpha, "label", 0)


@pytest.mark.parametrize("text", ["client,question\nx,q0\n", "a,b\n1,2\n", "client,question\n-1,q0\n"])
def test_a_partition_that_is_none_is_one_line(text, tmp_path) -> None:
    (tmp_path / "owners.csv").write_text(text)
    with pytest.raises(ArtifactError, match=r"owners\.csv: a row .* a client's number and a question are expected"):
        read_owned(tmp_path / "owners.csv", asked([0]), 5)


items = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("xyz")), min_size=1, max_size=80)
ways = st.sampled_from(["label", "topic", "quantity"])


@settings(max_examples=60, deadline=None)
@given(items, st.integers(1, 30), st.floats(1e-4, 1e8), ways, st.integers(0, 5))
def test_every_item_has_one_owner_and_no_client_is_empty(rows, clients, alpha, by, seed) -> None:
    questions = asked([label for label, _ in rows], [topic for _, topic in rows])
    owners = partition(questions, "task", clients, alpha, by, seed)
    assert owners.shape == (len(questions),)
    assert owners.min() >= 0
    assert owners.max() < clients
    held = np.bincount(owners, minlength=clients)
    assert held.sum() == len(questions)
    if len(questions) >= clients:
        assert held.min() >= 1
    again = partition(questions, "task", clients, alpha, by, seed)
    assert (owners == again).all()


@settings(max_examples=30, deadline=None)
@given(items, st.integers(1, 20), ways)
def test_counts_add_up_to_the_items(rows, clients, by) -> None:
    questions = asked([label for label, _ in rows], [topic for _, topic in rows])
    owners = partition(questions, "task", clients, 1.0, by, 0)
    table = counts(questions, owners, "task", by)
    for kind in {"label", "topic"} & {row["kind"] for row in table}:
        assert sum(row["items"] for row in table if row["kind"] == kind) == len(questions)
    label = next(row for row in table if row["kind"] == "label")
    mine = [q for q, owner in zip(questions, owners, strict=True) if owner == label["client"]]
    assert label["items"] == sum(str(q.answer) == label["value"] for q in mine)


@settings(max_examples=30, deadline=None)
@given(items, st.integers(1, 20), st.integers(1, 9), st.integers(0, 5))
def test_a_smaller_cap_keeps_a_part_of_what_a_greater_one_keeps(rows, clients, most, seed) -> None:
    owners = partition(asked([label for label, _ in rows]), "task", clients, 1.0, "label", seed)
    assert capped(owners, None, "task", seed) is owners
    less, more = capped(owners, most, "task", seed), capped(owners, most + 1, "task", seed)
    held = np.bincount(owners, minlength=clients)
    assert (np.bincount(less[less >= 0], minlength=clients) == np.minimum(held, most)).all()
    assert (less[less >= 0] == owners[less >= 0]).all()
    assert set(np.flatnonzero(less >= 0)) <= set(np.flatnonzero(more >= 0))


def shares(alpha: float, by: str) -> np.ndarray:
    """Each client's share of label 0 times clients, for 2,000 items over 20 clients."""
    questions = asked([i % 2 for i in range(2000)], [str(i % 2) for i in range(2000)])
    owners = partition(questions, "task", 20, alpha, by, 0)
    return np.array([(owners[::2] == client).mean() for client in range(20)]) * 20


@pytest.mark.parametrize("by", ["label", "topic"])
def test_large_alpha_approaches_equal_mixtures_and_small_alpha_leaves_them(by: str) -> None:
    spread = [shares(alpha, by).std() for alpha in (0.1, 1.0, 10.0, 1e9)]
    assert spread == sorted(spread, reverse=True)
    assert spread[0] > 1.5
    assert 0.6 < spread[1] < 1.6  # Dirichlet(1) over 20 clients: about 0.95
    assert spread[3] < 0.021  # each client within one item of 50


def test_quantity_deals_labels_alike_and_seeds_differ() -> None:
    questions = asked([i % 2 for i in range(2000)])
    owners = partition(questions, "task", 10, 1.0, "quantity", 0)
    held = np.bincount(owners, minlength=10)
    assert held.max() > 1.5 * held.mean()
    big = np.flatnonzero(held >= 100)
    mix = [np.mean([questions[i].answer for i in np.flatnonzero(owners == client)]) for client in big]
    assert np.abs(np.array(mix) - 0.5).max() < 0.2
    assert (owners != partition(questions, "task", 10, 1.0, "quantity", 1)).any()
