"""Sections ``baselines``, ``tune`` and ``frozen_base``: the methods without blocks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from assyllm.params.names import LOW_RANK, Task
from assyllm.params.section import Count, Fraction, Positive, Section, Seed

RATES = ("server_rate", "learning_rate")


class Tuning(Section):
    """One method's tuned settings (the grid and its result are in EXPERIMENTS.md).

    By default FedAdam (Reddi 2021): a client makes one step of plain SGD over all its items, the server's Adam follows
    their average. ``learning_rate`` is then only a scale, which Adam takes out. A rate is a number, or one for every
    model that may be fine-tuned.
    """

    server_rate: Positive | dict[str, Positive]
    """learning rate of the server's optimizer, or one for each model that may be fine-tuned"""
    rounds: Count
    """of FedAvg, `federated.clients_per_round` clients each"""
    local_epochs: Count
    """passes over a client's questions in a round; sgd makes one step instead"""
    batch: Count
    """questions of a client's step (sgd: all of a client's)"""
    server: Literal["fedavg", "fedavgm", "fedadam"] = "fedadam"
    """fedavg (`server_rate` 1: the mean of the clients' weights) | fedavgm (momentum .9) | fedadam"""
    learning_rate: Positive | dict[str, Positive] = 1.0
    """of the clients' optimizer, or one for each model"""
    optimizer: Literal["sgd", "momentum", "adamw"] = "sgd"
    """of the clients: sgd (one step over all items) | momentum (.9) | adamw; its state ends with the round"""
    head_factor: Positive = 1.0
    """the head's learning rate on a client, in multiples of `learning_rate`"""

    @model_validator(mode="after")
    def _one_step_of_sgd(self) -> Tuning:
        if self.optimizer == "sgd" and self.local_epochs > 1:
            raise ValueError("local_epochs: sgd makes one step a round; momentum or adamw may make several")
        return self

    def rates_of(self, model: str) -> tuple[float, float]:
        """The server's rate and the clients' where ``model`` is fine-tuned."""
        server, clients = self.server_rate, self.learning_rate
        return (
            server[model] if isinstance(server, dict) else server,
            clients[model] if isinstance(clients, dict) else clients,
        )

    def at(self, rate: float, local_epochs: int) -> Tuning:
        """This tuning at a point of the grid; the rate is the server's, with FedAvg the clients'."""
        knob = "learning_rate" if self.server == "fedavg" else "server_rate"
        return self.model_copy(update={knob: rate, "local_epochs": local_epochs})


class LoraTuning(Tuning):
    """Low-rank adapters (Hu 2022) on the queries and values, or on every linear layer."""

    rank: Count = 8
    """of the adapters"""
    alpha: Count = 16
    """they are scaled by alpha / rank"""
    targets: Literal["query_value", "all"] = "all"
    """query_value (peft's choice) | all (every linear layer)"""


class FedAdapterTuning(Tuning):
    """Bottleneck adapters that grow from the top (Cai 2023)."""

    depth: Count = 1
    """layers with an adapter in the first round, counted from the top"""
    width: Annotated[int, Field(ge=1, le=1024)] = 8
    """of their bottleneck in the first round"""
    deeper: Count = 1
    """layers that the deep trial adds"""
    wider: Count = 8
    """width that the wide trial adds"""
    trial_every: Count = 15
    """rounds from one trial to the next"""
    trial_rounds: Count = 3
    """rounds that a trial takes"""

    @model_validator(mode="after")
    def _trials_fit(self) -> FedAdapterTuning:
        if self.trial_rounds > self.trial_every:
            raise ValueError(f"trial_rounds: {self.trial_rounds} is more than trial_every ({self.trial_every})")
        return self


class FwdLLMTuning(LoraTuning):
    """Forward gradients along random directions (Xu 2024)."""

    estimator: Literal["central", "jvp"] = "central"
    """central (differences of two forward passes) | jvp (forward-mode differentiation)"""
    step: Positive = 0.01
    """of the central difference, in multiples of a direction"""
    directions: Count = 2
    """that a client tries for one ask"""
    max_directions: Count = 4
    """that a client tries in a round, at most"""
    candidates: Count = 4
    """drawn for each direction; the one nearest to the last round's gradient is kept"""
    variance: Fraction = 0.8
    """relative variance of the estimate below which the server asks no more"""

    @model_validator(mode="after")
    def _one_estimate(self) -> FwdLLMTuning:
        if self.directions > self.max_directions:
            raise ValueError(f"directions: {self.directions} is more than max_directions ({self.max_directions})")
        for name, only in (("optimizer", "sgd"), ("local_epochs", 1), ("head_factor", 1.0)):
            if (value := getattr(self, name)) != only:
                raise ValueError(f"{name}: {value}; a device sends an estimate and makes no step, so only {only} holds")
        return self

    @property
    def asks(self) -> int:
        """How often a cohort is asked in a round, at most."""
        return max(1, self.max_directions // self.directions)

    def at(self, rate: float, local_epochs: int) -> Tuning:
        """This tuning at a point of the grid; a client makes one estimate a round, whatever its epochs."""
        return super().at(rate, 1)


class ClosedForm(Section):
    """The closed-form head on one frozen model, and how many rounds its sums take."""

    ridge_grid: list[Positive] = Field(min_length=1)
    rounds: Count
    scope: Literal["last_layer", "all_layers"] = "all_layers"
    sketch_dims: Count | None = 256


CLOSED_FORM = {"ridge_grid": [1.0], "rounds": 1}  # what a stage is given that fits no such head


class Baselines(Section):
    """The fine-tuning methods that AssyLLM is compared with."""

    model: str
    evaluate_every: Count
    test_every: Count
    closed_form: ClosedForm
    ft_oracle: dict[Task, Tuning] = Field(default_factory=dict)  # a run is given its own method's only
    ft_practical: dict[Task, Tuning] = Field(default_factory=dict)
    lora: dict[Task, LoraTuning] = Field(default_factory=dict)
    lora_all: dict[Task, LoraTuning] = Field(default_factory=dict)
    qlora: dict[Task, LoraTuning] = Field(default_factory=dict)
    qlora_recomputation: dict[Task, LoraTuning] = Field(default_factory=dict)
    fedadapter: dict[Task, FedAdapterTuning] = Field(default_factory=dict)
    fwdllm: dict[Task, FwdLLMTuning] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _judged_together(self) -> Baselines:
        if self.test_every % self.evaluate_every:
            raise ValueError(f"test_every: {self.test_every} is no multiple of evaluate_every: {self.evaluate_every}")
        shapes = {method: self._adapters(method) for method in LOW_RANK}
        for method, found in shapes.items():
            if len(found) > 1:
                raise ValueError(f"{method}: other adapters for other tasks, but one cost table stands for all of them")
        if shapes["lora"] and shapes["lora_all"] and shapes["lora"] != shapes["lora_all"]:
            raise ValueError("lora_all: other adapters than those of lora, whose cost table it shares")
        return self

    def _adapters(self, method: str) -> set[tuple[str, int, int]]:
        tunings = getattr(self, method).values()
        return {(t.targets, t.rank, getattr(t, "max_directions", 1)) for t in tunings}

    def low_rank(self, method: str) -> LoraTuning | None:
        """The tuning of a method that trains low-rank adapters (of any task: their adapters are alike)."""
        tunings = list(getattr(self, method).values()) if method in LOW_RANK else []
        return tunings[0] if tunings else None


def shapes_of(tunings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tunings of low-rank adapters (as JSON) with constants but for what decides a step (`Baselines.low_rank`)."""
    kept = ("rank", "targets", "directions", "max_directions")
    rest = {"server_rate": 1.0, "rounds": 1, "local_epochs": 1, "batch": 1}
    return {task: rest | {k: tuning[k] for k in kept if k in tuning} for task, tuning in tunings.items()}


class Tune(Section):
    """The grid of `snakemake tuning`, the same for every method."""

    rates: list[Positive] = Field(min_length=1)
    local_epochs: list[Count] = Field(min_length=1)
    seed: Seed


class FrozenBase(Section):
    """The model under the baselines that do not train its weights (:data:`FROZEN_BASE`)."""

    bits: Literal[8, 16]
