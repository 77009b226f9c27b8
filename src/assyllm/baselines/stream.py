"""One step of full fine-tuning with one layer in memory: weights, optimizer state and activations live on disk.

The model is a chain of stages (embedding, layers, head). Forward, a stage's weights are read, used and let go. What
the backward pass needs of a stage is either **swapped** (autograd's saved tensors go to disk and come back) or
**recomputed** (only the stage's input is kept, on disk). Backward, a stage's weights are read again, its gradients are
taken, its optimizer step is made and the result is written before the next stage is touched. The arithmetic is that
of :func:`assyllm.baselines.local.local_step`, operation by operation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from assyllm.baselines.layered import Call, Layered
from assyllm.baselines.local import Local, Weights, update, weighted_loss
from assyllm.baselines.method import HEAD
from assyllm.zoo.forward import Packed


class Disk:
    """Tensors in a folder, one raw file each; counts the bytes that went either way."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.files: dict[str, tuple[Path, torch.dtype, torch.Size, tuple[int, ...]]] = {}
        self.read_bytes = self.written_bytes = 0

    def write(self, key: str, tensor: Tensor) -> None:
        """Store (or replace) ``tensor`` under ``key``."""
        path = self.files[key][0] if key in self.files else self.folder / f"{len(self.files)}.bin"
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        raw.tofile(path)
        self.files[key] = (path, tensor.dtype, tensor.shape, tensor.stride())
        self.written_bytes += raw.nbytes

    def read(self, key: str) -> Tensor:
        """The tensor of ``key``, with the strides that it had (kernels may round by layout)."""
        path, dtype, shape, stride = self.files[key]
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        raw = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
        self.read_bytes += len(raw)
        tensor = raw.view(dtype).reshape(shape)
        return (
            tensor.clone()
            if tensor.stride() == stride
            else torch.empty_strided(shape, stride, dtype=dtype).copy_(tensor)
        )


class Swapped:
    """Autograd's saved tensors on disk; a saved weight is kept by name, as it lies there already."""

    def __init__(self, disk: Disk, leaves: Weights | None = None) -> None:
        self.disk = disk
        self.leaves = leaves or {}
        self.count = 0

    def hooks(self) -> saved_tensors_hooks:
        """A context in which the forward pass saves through this object."""
        return saved_tensors_hooks(self.pack, self.unpack)

    def pack(self, tensor: Tensor) -> Any:
        """To disk, and back a ticket."""
        place = tensor.untyped_storage()._cdata
        for name, leaf in self.leaves.items():
            if leaf.untyped_storage()._cdata == place:
                return name, tensor.shape, tensor.stride(), tensor.storage_offset()
        key = f"saved/{id(self)}/{self.count}"
        self.count += 1
        self.disk.write(key, tensor)
        return key

    def unpack(self, ticket: Any) -> Tensor:
        """The saved tensor of a ticket."""
        if isinstance(ticket, str):
            return self.disk.read(ticket)
        name, shape, stride, offset = ticket
        return self.leaves[name].detach().as_strided(shape, stride, offset)


def streamed_step(layered: Layered, disk: Disk, names: list[str], step: int, batch: Packed, local: Local,
                  moments: int, swap: bool) -> float:  # fmt: skip
    """One step of one client; the loss before it. ``weight/<name>`` and ``<moment>/<name>`` on ``disk`` are updated.

    Args:
        names: the trainable tensors, of the base model and the head.
        moments: sets of optimizer state, under "0/<name>" and, for AdamW, "1/<name>".
        swap: saved tensors go to disk; else they are recomputed.
    """
    last = len(layered.layers) + 1
    stages = [[name for name in names if layered.stage(name) == number] for number in range(last + 1)]
    call = Call()

    def run(number: int, leaves: Weights, states: Tensor | None) -> Tensor:
        nonlocal call
        if number == 0:
            entered, call = layered.enter(leaves, batch)
            return entered
        assert states is not None
        if number < last:
            return layered.layer(number - 1, leaves, states, call)
        scores = layered.leave(leaves, states, batch) @ leaves[HEAD]
        return weighted_loss(scores, batch, torch.ones(len(batch), device=batch.ids.device))

    graphs: list[tuple[Tensor, Tensor | None, Weights]] = []  # per stage: output, input, weights (emptied)
    states: Tensor | None = None
    for number, own in enumerate(stages):
        leaves = {name: disk.read(f"weight/{name}").requires_grad_(swap) for name in own}
        if swap:
            entering = None if states is None else states.detach().requires_grad_()
            with Swapped(disk, leaves).hooks():
                states = run(number, leaves, entering)
            graphs.append((states, entering, leaves))
            for leaf in leaves.values():
                leaf.untyped_storage().resize_(0)
        else:
            if states is not None:
                disk.write(f"input/{number}", states)
            with torch.no_grad():
                states = run(number, leaves, states)
    assert states is not None
    loss, arriving = float(states.detach()), torch.ones(())
    del states
    for number in reversed(range(last + 1)):
        own = stages[number]
        if swap:
            output, entering, leaves = graphs.pop()
            for name, leaf in leaves.items():
                stored = disk.read(f"weight/{name}")
                leaf.untyped_storage().resize_(stored.untyped_storage().nbytes())
                leaf.data.copy_(stored)
        else:
            leaves = {name: disk.read(f"weight/{name}").requires_grad_() for name in own}
            entering = disk.read(f"input/{number}").requires_grad_() if number else None
            output = run(number, leaves, entering)
        wanted = ([] if entering is None else [entering]) + list(leaves.values())
        found = list(torch.autograd.grad(output, wanted, arriving.to(output.dtype)))
        if entering is not None:
            arriving = found.pop(0)
        state = [{name: disk.read(f"{kind}/{name}") for name in own} for kind in range(moments)]
        weights = {name: leaf.detach() for name, leaf in leaves.items()}
        update(weights, dict(zip(own, found, strict=True)), state, step, None, local)
        for name in own:
            disk.write(f"weight/{name}", weights[name])
            for kind in range(moments):
                disk.write(f"{kind}/{name}", state[kind][name])
    return loss
