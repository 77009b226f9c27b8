"""FedAdapter (Cai 2023, "Efficient Federated Learning for Modern NLP"): bottleneck adapters that grow from the top.

An adapter after a layer adds  up relu(down h + b)  to its states. Training starts with few layers from the top and a
narrow bottleneck. At intervals the cohort is split into trial groups that go on from the same function with the present
configuration (shallow), one with adapters further down (deep) and one with wider ones (wide); the server keeps the
one whose loss on its development split is lowest. Layers below the lowest adapter are frozen: their states are computed
once and kept.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from assyllm import seeding
from assyllm.artifacts import ArtifactError
from assyllm.baselines.layered import Layered
from assyllm.baselines.local import Local, Weights, train_cohort
from assyllm.baselines.method import HEAD, Cached, Data, OnModel, chunks
from assyllm.params import FedAdapterTuning
from assyllm.zoo.forward import Packed

TRIALS = ("shallow", "deep", "wide")  # the groups, from the cheapest on
WIDEST = 1024  # rows that are drawn of every adapter, so that a wider one begins with the narrower's
MAX_DEPTH = 0.75  # share of the layers that may get adapters; the cost table counts with it


class FedAdapter(OnModel):
    """Tensors ``adapter.<layer>.{down,bias,up}`` and the head; during a trial once per group, as ``<group>/...``."""

    def __init__(self, model: nn.Module, tuning: FedAdapterTuning) -> None:
        super().__init__(model)
        self.base = copy.deepcopy(self.base).requires_grad_(False)
        self.layered = Layered(self.base)
        self.tuning = tuning
        self.deepest = max(tuning.depth, int(MAX_DEPTH * len(self.layered.layers)))
        self.cache: dict[int, Tensor] = {}
        self.seed = 0

    def start(self, seed: int = 0) -> Weights:
        """The first, shallow and narrow adapters; they change nothing yet."""
        self.seed = seed
        if self.tuning.depth > (layers := len(self.layered.layers)):
            raise ArtifactError(f"baselines.fedadapter: depth {self.tuning.depth} is more than the {layers} layers")
        return self._grown(self.head(), self.tuning.depth, self.tuning.width)

    def _grown(self, weights: Weights, depth: int, width: int) -> Weights:
        """The same function with adapters in the ``depth`` top layers, ``width`` wide (new parts add nothing)."""
        like, layers = weights[HEAD], len(self.layered.layers)
        hidden = int(self.layered.config.hidden_size)
        grown = {HEAD: weights[HEAD].clone()}
        for layer in range(layers - depth, layers):
            name = f"adapter.{layer}."
            draws = seeding.rng("adapter", self.seed, layer).uniform(-1, 1, (WIDEST, hidden))[:width] * hidden**-0.5
            down = torch.from_numpy(draws).to(like.dtype)
            bias, up = like.new_zeros(width), like.new_zeros(hidden, width)
            if name + "up" in weights:
                old = weights[name + "up"].shape[1]
                down[:old], bias[:old] = weights[name + "down"], weights[name + "bias"]
                up[:, :old] = weights[name + "up"]
            grown |= {name + "down": down, name + "bias": bias, name + "up": up}
        return grown

    # ------------------------------------------------------------------------------------ cached lower layers

    def prepare(self, data: Data) -> Data:
        """The data with every question's row number in the store of frozen states."""
        splits = {name: getattr(data, name) for name in ("train", "dev", "test")}
        self.splits, found, first = list(splits.values()), {}, 0
        for name, split in splits.items():
            found[name] = Cached(**split.tensors(), cached=torch.arange(first, first + len(split)))
            first += len(split)
        self.cache, self.dev = {}, found["dev"]
        return Data(**found, owned=data.owned)

    @torch.no_grad()
    def _frozen(self, layer: int) -> Tensor:
        """States [questions, R, L, d] of all splits before ``layer``, computed at the first call."""
        if layer not in self.cache:
            longest = max(split.ids.shape[-1] for split in self.splits)
            parts = []
            for split in self.splits:
                for index in chunks(split):
                    batch = split.take(index)
                    states, call = self.layered.enter({}, batch)
                    for below in range(layer):
                        states = self.layered.layer(below, {}, states, call)
                    states = states.reshape(*batch.ids.shape, states.shape[-1])
                    parts.append(nn.functional.pad(states, (0, 0, 0, longest - states.shape[-2])))
            self.cache[layer] = torch.cat(parts)
        return self.cache[layer]

    def scores(self, weights: Weights, batch: Packed) -> Tensor:
        """Scores [n, C] of every choice; of the shallow group while a trial is on."""
        if f"shallow/{HEAD}" in weights:
            weights = self._group(weights, "shallow")
        first = min(int(name.split(".")[1]) for name in weights if name != HEAD)
        states, call = self.layered.enter({}, batch)
        if first:
            kept = self._frozen(first)[batch.cached]  # type: ignore[attr-defined]
            states = kept[..., : batch.ids.shape[-1], :].reshape(states.shape)
        for layer in range(first, len(self.layered.layers)):
            states = self.layered.layer(layer, {}, states, call)
            down, bias, up = (weights[f"adapter.{layer}.{part}"] for part in ("down", "bias", "up"))
            states = states + torch.relu(states @ down.T + bias) @ up.T
        return self.layered.leave({}, states, batch) @ weights[HEAD]

    # ------------------------------------------------------------------------------------------------ growing

    @staticmethod
    def _group(weights: Weights, name: str) -> Weights:
        return {n.removeprefix(f"{name}/"): t for n, t in weights.items() if n.startswith(f"{name}/")}

    def _groups(self, weights: Weights) -> dict[str, Weights]:
        found = {name: self._group(weights, name) for name in TRIALS}
        return {name: group for name, group in found.items() if group}

    def train(
        self,
        weights: Weights,
        data: Packed,
        clients: Sequence[tuple[int, Sequence[int]]],
        local: Local,
        *names: str | int,
    ) -> tuple[Weights, float]:
        """A round of the given clients; during a trial they are dealt to the groups in turn."""
        groups = self._groups(weights)
        if not groups:
            return train_cohort(self.loss, weights, data, clients, local, *names)
        new: Weights = {}
        total, items = 0.0, sum(len(held) for _, held in clients)
        for number, (name, group) in enumerate(groups.items()):
            own = clients[number :: len(groups)]
            if own:
                group, loss = train_cohort(self.loss, group, data, own, local, *names)
                total += loss * sum(len(held) for _, held in own) / items
            new |= {f"{name}/{key}": tensor for key, tensor in group.items()}
        return new, total

    def after_round(self, weights: Weights, round_: int) -> Weights:
        """Begin a trial after every ``trial_every`` rounds, end it ``trial_rounds`` later."""
        groups = self._groups(weights)
        if groups:
            if round_ % self.tuning.trial_every != self.tuning.trial_rounds % self.tuning.trial_every:
                return weights
            losses = {name: self._dev_loss(group) for name, group in groups.items()}
            return groups[min(losses, key=lambda name: losses[name])]
        if round_ % self.tuning.trial_every:
            return weights
        layers = [name for name in weights if name.endswith(".up")]
        depth, width = len(layers), weights[layers[0]].shape[1]
        trial = {"shallow": weights}
        if depth < self.deepest:
            trial["deep"] = self._grown(weights, min(depth + self.tuning.deeper, self.deepest), width)
        if width < (widest := min(self.width, WIDEST)):
            trial["wide"] = self._grown(weights, depth, min(width + self.tuning.wider, widest))
        if len(trial) == 1:
            return weights
        return {f"{name}/{key}": tensor for name, group in trial.items() for key, tensor in group.items()}

    @torch.no_grad()
    def _dev_loss(self, weights: Weights) -> float:
        total = 0.0
        for index in chunks(self.dev):
            batch = self.dev.take(index)
            total += float(self.loss(weights, batch, torch.ones(len(batch)))) * len(batch)
        return total / max(1, len(self.dev))

    def traffic(self, weights: Weights) -> tuple[int, int]:
        """A client trains one configuration: during a trial the groups' mean."""
        size: Any = sum(t.numel() * t.element_size() for t in weights.values()) // max(1, len(self._groups(weights)))
        return size, size
