"""A method's name to what one step of it is on a device, at any shape and reading.

Every step is the method's own code from ``baselines`` on a model of true shape. Where the simulator takes a short cut
that a device cannot (states cached for the whole data set, bitsandbytes' layers that need storage to be built), the
device's version stands here, in as few lines as it takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from assyllm.artifacts import ArtifactError
from assyllm.baselines.fedadapter import FedAdapter
from assyllm.baselines.full import FullFineTuning
from assyllm.baselines.fwdllm import FwdLLM, unflatten
from assyllm.baselines.layered import Layered
from assyllm.baselines.local import Local, Weights, start_state
from assyllm.baselines.lora import Lora, with_adapters
from assyllm.baselines.method import HEAD, Method, OnModel, body
from assyllm.baselines.qlora import QLora
from assyllm.baselines.qlora_recomputation import QLoraRecomputation
from assyllm.baselines.recomputation import Recomputation
from assyllm.baselines.stream import streamed_step
from assyllm.baselines.swapping import Swapping
from assyllm.cost.nf4 import pack_nf4
from assyllm.cost.selection import Residency, scoring_step
from assyllm.cost.step import (
    Elsewhere,
    Reading,
    Step,
    build,
    compute_buffers,
    frozen_base,
    gradient_step,
    in_reading,
    on_device,
    questions,
    shapes_only,
)
from assyllm.cost.trace import repeated
from assyllm.cost.tuning import adapter_step
from assyllm.params import ASSEMBLING
from assyllm.zoo.forward import Packed

STEP = 0.01  # of FwdLLM's central differences


def settings(reading: Reading) -> Any:
    """At true shape: the reading's low-rank adapters; adapters of width 32 as deep as FedAdapter's search may go."""
    return SimpleNamespace(
        rank=reading.rank, alpha=2.0 * reading.rank, targets=reading.targets, width=32, depth=1,
    )  # fmt: skip


class _QLora(QLora):
    """QLoRA on empty 4-bit layers of ours; its step is the method's own."""

    def __init__(self, model: Any, tuning: Any) -> None:
        OnModel.__init__(self, model)
        self.base = self.device = with_adapters(pack_nf4(self.base), tuning)


class _QLoraRecomputation(_QLora):
    """The same with checkpointed layers."""

    def __init__(self, model: Any, tuning: Any) -> None:
        super().__init__(model, tuning)
        self.layered = Layered(self.device)

    device_loss = QLoraRecomputation.device_loss


class _FedAdapter(FedAdapter):
    """FedAdapter without the store of frozen states: the lower layers run forward in every step."""

    def start(self, seed: int = 0) -> Weights:
        """Adapters as deep and wide as they may grow: what a device must be able to hold."""
        return self._grown(self.head(), self.deepest, self.tuning.width)

    def _frozen(self, layer: int) -> Tensor:
        with torch.no_grad():
            states, call = self.layered.enter({}, self.batch)
            for below in range(layer):
                states = self.layered.layer(below, {}, states, call)
        return states.reshape(*self.batch.ids.shape, states.shape[-1])

    def scores(self, weights: Weights, batch: Packed) -> Tensor:
        """Scores [n, C] of every choice."""
        self.batch = batch
        cached = SimpleNamespace(**batch.tensors(), cached=slice(None))
        return super().scores(weights, cached)  # type: ignore[arg-type]


def _forward_gradient(method: str, config: dict[str, Any], reading: Reading, device: str) -> Step:
    """FwdLLM: forward passes of one client along its directions and for the head, and its step of plain SGD."""
    with shapes_only():
        subject = FwdLLM(frozen_base(config, reading), settings(reading))
        in_reading(subject.base, reading)
    weights, frozen = on_device(subject, device)
    batch = questions(config["model_type"], reading, config["vocab_size"], device)
    ones = torch.ones(len(batch), device=device)
    adapters = body(weights)
    size, dtype = sum(tensor.numel() for tensor in adapters.values()), next(iter(adapters.values())).dtype

    def at(direction: Weights, distance: float) -> Tensor:
        def loss() -> Tensor:
            moved = {name: t + distance * direction[name] for name, t in adapters.items()}
            return subject.loss(moved | {HEAD: weights[HEAD]}, batch, ones)

        return repeated((method, json.dumps(config, sort_keys=True), reading), loss)

    @torch.no_grad()
    def run() -> None:  # as baselines.fwdllm.slopes, which vectorises over clients and directions
        gradient = {name: torch.zeros_like(tensor) for name, tensor in adapters.items()}
        for _ in range(reading.directions):
            direction = unflatten(torch.empty(size, device=device, dtype=dtype).normal_(), adapters)
            slope = (at(direction, STEP) - at(direction, -STEP)) / (2 * STEP * reading.directions)
            for name, part in direction.items():
                gradient[name] += slope * part
        gradient[HEAD] = subject._head_gradient(weights, batch)
        for name, tensor in weights.items():
            tensor -= 1e-4 * gradient[name]

    held = {"parameters": [*weights.values(), *frozen], "temporary": [*batch.tensors().values(), ones]}
    return Step(run, held, traffic=subject.traffic(weights), keep=[subject])


def _streamed(method: str, config: dict[str, Any], reading: Reading, device: str) -> Step:
    """Recomputation and swapping: one stage of the model in memory, the rest on storage."""
    storage = Elsewhere(device)
    with shapes_only():
        subject = {"recomputation": Recomputation, "swapping": Swapping}[method](build(config, reading))
        weights = subject.start()
        sets = start_state(weights, reading.optimizer)
    for kind, tensors in {"weight": weights, **{str(i): moments for i, moments in enumerate(sets)}}.items():
        for name, tensor in tensors.items():
            storage.write(f"{kind}/{name}", tensor)
    storage.written_bytes = 0
    names, traffic = list(weights), subject.traffic(weights)
    buffers = compute_buffers(subject.layered.skeleton, device)
    batch = questions(config["model_type"], reading, config["vocab_size"], device)
    local = Local(1e-4, 1, reading.batch, reading.optimizer)

    def run() -> None:
        streamed_step(subject.layered, storage, names, 1, batch, local, len(sets), subject.swap)  # type: ignore[arg-type]

    held = {"parameters": buffers, "temporary": list(batch.tensors().values())}
    return Step(run, held, storage=storage, traffic=traffic, keep=[subject])


def _gradient(
    kind: Callable[[Any, Any], Method], base: Callable[[dict[str, Any], Reading], Any] = build
) -> Callable[[str, dict[str, Any], Reading, str], Step]:
    def make(method: str, config: dict[str, Any], reading: Reading, device: str) -> Step:
        def subject() -> Any:
            made: Any = kind(base(config, reading), settings(reading))
            in_reading(made.base, reading)
            return made

        return gradient_step(subject, config, reading, device)

    return make


STEPS: dict[str, Callable[[str, dict[str, Any], Reading, str], Step]] = {
    "ft_oracle": _gradient(FullFineTuning),
    "ft_practical": _gradient(FullFineTuning),
    "lora": _gradient(Lora, frozen_base),
    "lora_all": _gradient(Lora, frozen_base),
    "qlora": _gradient(_QLora),
    "qlora_recomputation": _gradient(_QLoraRecomputation),
    "fedadapter": _gradient(_FedAdapter, frozen_base),
    "fwdllm": _forward_gradient,
    "recomputation": _streamed,
    "swapping": _streamed,
}
# forward passes of whole models, their layers brought in in turn
WHOLE = ("zero_shot", "one_model_head", "all_models_head", "choices_only")
STREAMED = (*ASSEMBLING, *WHOLE)
FORWARD = (*STREAMED, "fwdllm")  # no optimizer state
TUNING = "adapter_tuning"  # what devices of `assyllm_paper` do after blocks are chosen
JOINED = "joined_scoring"  # scoring by `assyllm`, an adapter before every block: the most that it takes
METHODS = (*STEPS, *STREAMED, TUNING, JOINED)


def step_of(
    method: str, config: dict[str, Any], reading: Reading, residency: Residency | None = None, device: str = "cpu"
) -> Step:
    """One step of ``method`` on a model of a hub config, ready to be measured or run.

    Args:
        residency: of the methods that keep a few blocks in memory.

    Raises:
        ArtifactError: the method is not known here.
    """
    if method in (*STREAMED, JOINED):
        kept = residency or Residency()
        if method in WHOLE:  # not from the quantized pool
            kept = Residency(kept.layers, kept.resident, 8 * reading.bytes_per_weight)
        return scoring_step(config, reading, kept, device, joined=method == JOINED)
    if method == TUNING:
        return adapter_step(config, reading, residency or Residency(), device)
    if method not in STEPS:
        raise ArtifactError(f"no cost model for method {method!r}; known: {', '.join(METHODS)}")
    return STEPS[method](method, config, reading, device)
