"""A method's own step on a model of true shape: on no memory at all (fakes), or on a real device.

What runs is ``baselines.local.local_step``, the same function that a client runs in the simulator. Declared
choices at device scale, where the simulator computes in float32 with eager attention to vectorise over clients:
weights, activations and optimizer state in 16 bit, fused attention, a batch of ``batch`` full rows of
``tokens`` tokens. A device holds one copy of what it trains (the simulator keeps the server's beside it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from assyllm.baselines.int8 import int8_layers
from assyllm.baselines.local import Local, start_state
from assyllm.baselines.method import Method
from assyllm.blocks.families import family
from assyllm.cost.trace import GRANULE, Report, Trace, allocating
from assyllm.zoo.forward import ENCODERS, Packed

CHOICES = 2
# cuBLAS's scratch of a thread that multiplies matrices, as measured on one H200: of the forward pass, of autograd's
WORKSPACE = 32 * 2**20
DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True, slots=True)
class Reading:
    """What must be said with every number: rows and tokens of a batch, optimizer, precision, attention."""

    batch: int = 16
    tokens: int = 256
    optimizer: str = "sgd"  # sgd (no state) | momentum | adamw
    bytes_per_weight: int = 2
    attention: str = "sdpa"  # sdpa (fused) | eager
    base_bits: int = 16  # of the frozen base of lora, fedadapter and fwdllm: 16 (bytes_per_weight counts) | 8
    targets: str = "query_value"  # of low-rank adapters: query_value (peft's choice) | all (every linear layer)
    rank: int = 8  # of low-rank adapters
    directions: int = 1  # of one step of fwdllm


class Elsewhere:
    """A device's storage, seen from its memory: what is written there leaves, what is read comes as a new tensor.

    It has the interface of ``baselines.stream.Disk`` and counts bytes, but moves none: fakes have none, and on a GPU
    they would time this machine's disk.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.read_bytes = self.written_bytes = 0
        self._kept: dict[str, tuple[tuple[int, ...], tuple[int, ...], torch.dtype]] = {}

    def write(self, key: str, tensor: Tensor) -> None:
        """Remember the shape of a tensor."""
        self._kept[key] = (tuple(tensor.shape), tensor.stride(), tensor.dtype)
        self.written_bytes += tensor.numel() * tensor.element_size()

    def read(self, key: str) -> Tensor:
        """A tensor of that shape in memory."""
        shape, stride, dtype = self._kept[key]
        with allocating("parameters" if key.startswith("weight/") else "" if key[0] not in "01" else "optimizer"):
            tensor = torch.empty_strided(shape, stride, dtype=dtype, device=self.device)
        if not _faking():
            tensor.normal_(std=0.02) if dtype.is_floating_point else tensor.fill_(1)
        self.read_bytes += tensor.numel() * tensor.element_size()
        return tensor


@dataclass
class Step:
    """Something to measure: ``run`` makes one step, ``held`` is what stands in memory before it, by category."""

    run: Callable[[], Any]
    held: dict[str, list[Tensor]]
    threads: int = 2  # that multiply matrices: forward alone, or backward too
    storage: Elsewhere | None = None  # what the step reads and writes while it runs
    overlapped: bool = False  # whether that happens while it computes
    traffic: tuple[int, int] = (0, 0)  # bytes (up, down) of a client in a round
    keep: list[Any] = field(default_factory=list)

    @property
    def workspace(self) -> int:
        """Bytes of matmul workspace on a GPU."""
        return self.threads * WORKSPACE


@contextmanager
def shapes_only() -> Iterator[None]:
    """Models and methods are put together on the meta device, and out of reach of fakes: peft moves what it adds."""
    with unset_fake_temporarily():
        yield


def build(config: dict[str, Any], reading: Reading) -> nn.Module:
    """A model of a hub config on the meta device, its weights of the reading's precision."""
    spec = family(config["model_type"])
    values = spec.config(config)
    values._attn_implementation = reading.attention
    model = spec.build(values).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[reading.bytes_per_weight])
    return model


def frozen_base(config: dict[str, Any], reading: Reading) -> nn.Module:
    """As :func:`build`, for methods that do not train its weights: linear layers in INT8 if the reading says so."""
    model = build(config, reading)
    return int8_layers(model) if reading.base_bits == 8 else model


def in_reading(base: nn.Module, reading: Reading) -> nn.Module:
    """``base`` with what is trained at the reading's bytes a weight.

    Over weights stored as integers peft makes float32 adapters where it knows no type to compute in; over bitsandbytes'
    layers, which name one, it takes that (as measured: ``tests/gpu/cost_h200.py --bitsandbytes``).
    """
    for parameter in base.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(DTYPES[reading.bytes_per_weight])
    return base


@torch.no_grad()
def fill(model: nn.Module, device: str) -> None:
    """Give a model on the meta device storage: tensors of no memory under fakes, else small random numbers."""
    made: dict[int, nn.Parameter] = {}  # tied weights stay one tensor
    with allocating("parameters"):
        for module in model.modules():
            for name, old in module._parameters.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype, device=device)
                    made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
                    if not _faking():
                        _draw(new, name)
                module._parameters[name] = made[id(old)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = _buffer(buffer, device)


def _draw(new: Tensor, name: str) -> None:
    if not new.is_floating_point():
        new.random_()
    elif new.dim() > 1:
        new.normal_(std=0.02)
    else:
        new.fill_(float(name == "weight"))


def _faking() -> bool:
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def _buffer(old: Tensor, device: str) -> Tensor:
    """A buffer's storage: computed ones (rotary frequencies) move, packed weights are drawn."""
    if _faking():
        return torch.empty(old.shape, dtype=old.dtype, device=device)
    if old.device.type != "meta":
        return old.to(device)
    new = torch.empty(old.shape, dtype=old.dtype, device=device)
    return new.fill_(0.01) if new.is_floating_point() else new.random_()


@torch.no_grad()
def drop(model: nn.Module) -> None:
    """Give a model's weights back: its parameters and packed weights to the meta device."""
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                module._parameters[name] = nn.Parameter(old.to("meta"), requires_grad=old.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and name in model_state(module):
                module._buffers[name] = buffer.to("meta")


def model_state(module: nn.Module) -> set[str]:
    """Names of the buffers that are weights (kept in a checkpoint), not computed ones."""
    return set(module._buffers) - module._non_persistent_buffers_set


def questions(model_type: str, reading: Reading, vocabulary: int, device: str = "cpu") -> Packed:
    """A batch of ``reading.batch`` full rows of ``reading.tokens`` tokens, two choices a question.

    A decoder reads a question's choices in one row behind their stem, an encoder each in its own row (an odd batch of
    those is of questions with one choice).
    """
    rows, length = reading.batch, reading.tokens
    packed = model_type not in ENCODERS
    choices = CHOICES if packed or rows % CHOICES == 0 else 1
    number, each = (rows, 1) if packed else (rows // choices, choices)
    segments = torch.zeros(number, each, length, dtype=torch.int64, device=device)
    if packed:
        tail = length // 4
        for choice in range(choices):
            end = length - tail * (choices - 1 - choice)
            segments[..., end - tail : end] = choice + 1
    place = torch.arange(length, device=device).expand(number, each, length)
    vectors = choices * 2 // each  # pooled vectors of a row: two a choice
    return Packed(
        ids=torch.randint(vocabulary, (number, each, length), device=device),
        positions=place.contiguous(),
        segments=segments,
        pools=torch.full((number, each, vectors, length), 1 / length, device=device),
        choice_mask=torch.ones(number, choices, dtype=torch.bool, device=device),
        answer=torch.zeros(number, dtype=torch.int64, device=device),
    )


def gradient_step(make: Callable[[], Method], config: dict[str, Any], reading: Reading, device: str) -> Step:
    """The ``step`` of a fine-tuning method that ``make`` builds, ready to run."""
    with shapes_only():
        subject: Any = make()
    weights, frozen = on_device(subject, device)
    state = start_state(weights, reading.optimizer)
    batch = questions(config["model_type"], reading, config["vocab_size"], device)
    local = Local(1e-4, 1, reading.batch, reading.optimizer)
    count = iter(range(1, 10**6))

    def run() -> None:
        subject.step(weights, state, next(count), batch, local)

    held = {
        "parameters": [*weights.values(), *frozen],
        "optimizer": [tensor for moments in state for tensor in moments.values()],
        "temporary": list(batch.tensors().values()),
    }
    return Step(run, held, traffic=subject.traffic(weights), keep=[subject])


def on_device(subject: Any, device: str) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Put a method on a device: its trainable tensors and the frozen ones, each once."""
    fill(subject.base, device)
    own = dict(subject.base.named_parameters())
    layered = getattr(subject, "layered", None)
    if layered is not None:  # its copy of what stands before the layers is the model's own again
        for name, parameter in list(layered.skeleton.named_parameters()):
            parent, _, leaf = name.rpartition(".")
            layered.skeleton.get_submodule(parent)._parameters[leaf] = own.get(name, parameter)
        compute_buffers(layered.skeleton, device)
    weights = {
        name: own[name].detach() if name in own and own[name].shape == tensor.shape else tensor.to(device)
        for name, tensor in subject.start().items()
    }
    return weights, [*subject.base.parameters(), *subject.base.buffers()]


def compute_buffers(model: nn.Module, device: str) -> list[Tensor]:
    """Move what a model computes from its config (rotary frequencies) to the device."""
    moved: list[Tensor] = []
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                moved.append(_buffer(buffer, device))
                module._buffers[name] = moved[-1]
    return moved


class _Fakes(FakeTensorMode):
    """Reading a number off a tensor that has none gives one: no branch of a step depends on a loss's value."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1
        return super().dispatch(func, types, args, kwargs or {})


@contextmanager
def fakes() -> Iterator[None]:
    """Everything made inside has a shape and no storage."""
    with _Fakes(allow_non_fake_inputs=True):
        yield


def measure(step: Step, steps: int = 1, granule: int = GRANULE) -> Report:
    """Run ``steps`` steps and report the peak of all, and the operations of the last one.

    One is enough: an optimizer's state is held before the first, so that the second repeats it.
    """
    trace = Trace(granule)
    for category, tensors in step.held.items():
        trace.hold(category, tensors)
    for _ in range(steps):
        trace.operations.clear()
        if step.storage is not None:
            step.storage.read_bytes = step.storage.written_bytes = 0
        with trace:
            step.run()
    return trace.report()
