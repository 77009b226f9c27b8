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
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from assyllm.baselines.local import Local, local_step, start_state
from assyllm.baselines.method import Method
from assyllm.baselines.registry import METHODS
from assyllm.blocks.families import family
from assyllm.cost.trace import GRANULE, Report, Trace, allocating
from assyllm.zoo.forward import ENCODERS, Packed

STEPS = 2  # some optimizers' state exists from the second step only
CHOICES = 2
# cuBLAS's scratch of a thread that multiplies matrices, on Hopper: one for the forward pass, one for autograd's
WORKSPACE = 32 * 2**20
DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True, slots=True)
class Reading:
    """What must be said with every number: rows and tokens of a batch, optimizer, precision, attention."""

    batch: int = 16
    tokens: int = 256
    optimizer: str = "plain_sgd"  # plain_sgd | sgd (momentum) | adamw
    bytes_per_weight: int = 2
    attention: str = "sdpa"  # sdpa (fused) | eager


@dataclass
class Step:
    """Something to measure: ``run`` makes one step, ``held`` is what stands in memory before it, by category."""

    run: Callable[[], Any]
    held: dict[str, list[Tensor]]
    threads: int = 2  # that multiply matrices: forward alone, or backward too
    keep: list[Any] = field(default_factory=list)

    @property
    def workspace(self) -> int:
        """Bytes of matmul workspace on a GPU."""
        return self.threads * WORKSPACE


def build(config: dict[str, Any], reading: Reading, device: str = "cpu", layers: int | None = None) -> nn.Module:
    """A model of a hub config with weights of the right size (drawn at random on a real device).

    Args:
        layers: as many layers only.
    """
    spec = family(config["model_type"])
    values = spec.config(config | ({"num_hidden_layers": layers} if layers else {}))
    values._attn_implementation = reading.attention
    model = spec.build(values)
    fill(model, DTYPES[reading.bytes_per_weight], device)
    return model.eval()


@torch.no_grad()
def fill(model: nn.Module, dtype: torch.dtype, device: str) -> None:
    """Give a model on the meta device storage: tensors of no memory under fakes, else small random weights."""
    made: dict[int, nn.Parameter] = {}  # tied weights stay one tensor
    with allocating("parameters"):
        for module in model.modules():
            for name, old in module._parameters.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=dtype, device=device)
                    made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
                    if not _faking():
                        new.normal_(std=0.02) if new.dim() > 1 else new.fill_(float(name == "weight"))
                module._parameters[name] = made[id(old)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = _buffer(buffer, device)


def _faking() -> bool:
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def _buffer(old: Tensor, device: str) -> Tensor:
    """A buffer's storage: computed ones (rotary frequencies) move, packed weights are drawn."""
    if old.device.type != "meta" and not _faking():
        return old.to(device)
    new = torch.empty(old.shape, dtype=old.dtype, device=device)
    if _faking():
        return new
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

    A decoder reads a question's choices in one row behind their stem, an encoder each in its own row.
    """
    rows, length = reading.batch, reading.tokens
    packed = model_type not in ENCODERS
    number, each = (rows, 1) if packed else (-(-rows // CHOICES), CHOICES)
    segments = torch.zeros(number, each, length, dtype=torch.int64, device=device)
    if packed:
        tail = length // 4
        for choice in range(CHOICES):
            end = length - tail * (CHOICES - 1 - choice)
            segments[..., end - tail : end] = choice + 1
    place = torch.arange(length, device=device).expand(number, each, length)
    vectors = CHOICES * 2 // each  # pooled vectors of a row: two a choice
    return Packed(
        ids=torch.randint(vocabulary, (number, each, length), device=device),
        positions=place.contiguous(),
        segments=segments,
        pools=torch.full((number, each, vectors, length), 1 / length, device=device),
        choice_mask=torch.ones(number, CHOICES, dtype=torch.bool, device=device),
        answer=torch.zeros(number, dtype=torch.int64, device=device),
    )


def gradient_step(
    method: str, config: dict[str, Any], reading: Reading, device: str = "cpu", layers: int | None = None
) -> Step:
    """``local_step`` of a fine-tuning method of the registry, ready to run."""
    model: Any = build(config, reading, device, layers)
    subject = METHODS[method](model)
    weights, frozen = on_device(subject, model, device)
    state = start_state(weights, reading.optimizer)
    batch = questions(config["model_type"], reading, config["vocab_size"], device)
    local = Local(1e-4, 1, reading.batch, reading.optimizer)
    count = iter(range(1, 10**6))

    def run() -> None:
        local_step(subject.loss, weights, state, next(count), batch, local)

    held = {
        "parameters": [*weights.values(), *frozen],
        "optimizer": [tensor for moments in state for tensor in moments.values()],
        "temporary": list(batch.tensors().values()),
    }
    return Step(run, held, keep=[subject])


def on_device(subject: Method, model: Any, device: str) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What a device holds of a method: its trainable tensors and the frozen ones, each once."""
    base = model.base_model
    own = dict(base.named_parameters())
    weights = {
        name: own[name].detach() if name in own and own[name].shape == tensor.shape else tensor.to(device)
        for name, tensor in subject.start().items()
    }
    frozen = [*base.parameters(), *base.buffers()]
    return weights, frozen


class _Reads(TorchDispatchMode):
    """Reading a number off a tensor that has none gives one: no branch of a step depends on a loss's value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1
        return func(*args, **(kwargs or {}))


@contextmanager
def fakes() -> Iterator[None]:
    """Everything made inside has a shape and no storage."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Reads():
        yield


def measure(step: Step, steps: int = STEPS, granule: int = GRANULE) -> Report:
    """Run ``steps`` steps and report the peak of all, and the operations of the last one."""
    trace = Trace(granule)
    for category, tensors in step.held.items():
        trace.hold(category, tensors)
    for _ in range(steps):
        trace.operations.clear()
        with trace:
            step.run()
    return trace.report()
