"""The one round loop of all fine-tuning baselines: FedAvg over a cohort, judged on the development split.

Each round samples ``clients_per_round`` of the clients that take part in the method at all, lets some drop
out, trains the rest and averages their weights by number of items (McMahan 2017). Every ``evaluate_every``
rounds the accuracy on dev is taken, every ``test_every`` that on test, for the curve; the reported test accuracy is
that of the round best on dev, judged once at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from assyllm.artifacts import ArtifactError
from assyllm.baselines.local import Local, Weights
from assyllm.baselines.method import Data, Method, choose
from assyllm.baselines.server import Server
from assyllm.checkpoint import Checkpoint
from assyllm.evaluate import converged_round
from assyllm.federated.cohort import in_time, once_each, sample


class Diverged(ArtifactError):
    """Local training gave a loss that is not a number."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run goes."""

    rounds: int
    clients_per_round: int
    evaluate_every: int
    local: Local
    dropout: float = 0.0
    server: str = "fedavg"
    server_rate: float = 1.0
    test_every: int = 1
    stragglers: float = 0.0
    least: int = 1  # replies that sums are taken from, of methods whose clients take part once


@dataclass(slots=True)
class Outcome:
    """What a run leaves: one dict a round, and the predictions of the round that was best on dev.

    A round has ``round, loss, participants, bytes_up, bytes_down`` (bytes of one participant, and of one straggler),
    where somebody was late ``stragglers``, and where evaluated a ``dev`` and perhaps a ``test`` accuracy.
    ``seconds`` are wall times of the rounds' training.
    """

    rounds: list[dict[str, Any]] = field(default_factory=list)
    best_round: int = 0
    best_dev: float = -1.0
    dev_chosen: list[int] = field(default_factory=list)
    test_chosen: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def converged(self) -> int:
        """The round at which the development accuracy had converged (evaluate.converged_round)."""
        curve = [(row["round"], row["dev"]) for row in self.rounds if "dev" in row]
        return converged_round(curve) if curve else 0


def run_rounds(
    method: Method,
    data: Data,
    plan: Plan,
    seed: int,
    eligible: Sequence[int],
    checkpoint: Checkpoint | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Weights, Outcome]:
    """Run a method for ``plan.rounds`` rounds; an equal checkpoint is taken up where it stopped.

    Clients without items never take part. With no eligible client the starting weights are evaluated.

    Args:
        seed: names cohorts, dropouts, first values and the order of items.
        eligible: numbers of the clients whose devices can run the method.
        report: called with each round's dict.

    Returns:
        The weights of the best round on dev, and the outcome.

    Raises:
        Diverged: a round's loss is not finite.
        ArtifactError: some clients can take part, but fewer than ``plan.least``, of a method whose clients do so once.
    """
    eligible = [client for client in eligible if len(data.owned[client])]
    data = method.prepare(data)
    if method.once and 0 < len(eligible) < plan.least:
        raise ArtifactError(
            f"{len(eligible)} client(s) can take part, fewer than federated.least_clients ({plan.least})"
        )
    weights, outcome, server = method.start(seed), Outcome(), Server(plan.server, plan.server_rate)
    best = weights
    stored = checkpoint.load() if checkpoint else None
    if stored is not None:
        tensors, state = stored
        weights, best = _under("now/", tensors), _under("best/", tensors)
        server.moments = _under("server/", tensors)
        method.resume(state["method"])
        outcome = Outcome(**state["outcome"])
    turns = _turns(method, plan, seed, eligible)
    for round_ in range(len(outcome.rounds) + 1, len(turns) + 1):
        row: dict[str, Any] = {"round": round_}
        began = time.perf_counter()
        answering, late = turns[round_ - 1]
        row["participants"] = len(answering)
        if late:
            row["stragglers"] = len(late)
        if answering:
            work = [(client, data.owned[client]) for client in answering]
            average, row["loss"] = method.train(weights, data.train, work, plan.local, seed, round_)
            weights = server.step(weights, average)
            if not np.isfinite(row["loss"]):
                raise Diverged(f"round {round_}: the loss is {row['loss']}; lower the rate")
        row["bytes_up"], row["bytes_down"] = method.traffic(weights)
        weights = method.after_round(weights, round_)
        outcome.seconds.append(time.perf_counter() - began)
        if round_ % plan.evaluate_every == 0 or round_ == len(turns):
            best = _evaluate(method, weights, best, data, row, outcome)
            # a tuning run is given no test questions
            if len(data.test) and (round_ % plan.test_every == 0 or round_ == len(turns)):
                row["test"] = float((choose(method, weights, data.test) == data.test.answer.numpy()).mean())
        outcome.rounds.append(row)
        if checkpoint and "dev" in row:
            _save(checkpoint, method, weights, best, server, outcome)
        if report:
            report(row)
    if not eligible:
        best = _evaluate(method, weights, best, data, {"round": 0}, outcome)
    outcome.test_chosen = choose(method, best, data.test).tolist()
    return best, outcome


def _turns(method: Method, plan: Plan, seed: int, eligible: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Per round the clients whose reply counts, and those that are too late."""

    def counted(round_: int, answering: Sequence[int]) -> tuple[list[int], list[int]]:
        counts, late = in_time(seed, round_, answering, plan.stragglers)
        return (counts, late) if len(counts) >= plan.least or not method.once else ([], sorted([*counts, *late]))

    rounds = range(1, plan.rounds + 1) if eligible else ()
    if method.once:
        return once_each(seed, rounds, eligible, plan.clients_per_round, plan.dropout, counted, plan.least)
    return [counted(n, sample(seed, n, eligible, plan.clients_per_round, plan.dropout)) for n in rounds]


def _evaluate(
    method: Method, weights: Weights, best: Weights, data: Data, row: dict[str, Any], outcome: Outcome
) -> Weights:
    """Add a round's accuracy on dev to its row; the weights of the best round so far (the earliest at a tie)."""
    dev = choose(method, weights, data.dev)
    row["dev"] = float((dev == data.dev.answer.numpy()).mean())
    if row["dev"] <= outcome.best_dev:
        return best
    outcome.best_dev, outcome.best_round = row["dev"], row["round"]
    outcome.dev_chosen = dev.tolist()
    return {name: tensor.clone() for name, tensor in weights.items()}


def _under(prefix: str, tensors: Weights) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _save(
    checkpoint: Checkpoint, method: Method, weights: Weights, best: Weights, server: Server, outcome: Outcome
) -> None:
    tensors = {f"now/{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    tensors |= {f"server/{name}": tensor for name, tensor in server.moments.items()}
    state = {name: getattr(outcome, name) for name in Outcome.__dataclass_fields__}
    checkpoint.save(tensors, {"method": method.progress(), "outcome": state})
