"""A device's step that trains the paper's cross-attention adapters end to end, at true shape (paper section 3.3).

The chain is walked forward layer by layer, each layer's input kept; then backward, each layer computed again with
gradients to its input and dropped. Layers stay frozen; of the adapters one is in memory at a time, and its gradient
leaves for storage, from where it is sent, as soon as it is there. An adapter stands before every fourth layer, the
size of the paper's middle blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from assyllm.adapter.cross_attention import PARTS, CrossAttentionAdapter
from assyllm.adapter.reading import Join
from assyllm.blocks.block import Block
from assyllm.cost.selection import Residency, shell
from assyllm.cost.step import DTYPES, Elsewhere, Reading, Step, drop, fill, questions
from assyllm.cost.trace import allocating

LAYERS_A_JOIN = 4


def adapter_step(config: dict[str, Any], reading: Reading, residency: Residency, device: str = "cpu") -> Step:
    """One gradient of every adapter of a chain as long as the model, on a batch.

    Peak memory is that of one layer's backward pass, the layers' inputs and one adapter; ``residency`` says at which
    width layers come and, by ``resident``, whether the next one comes while this one computes.
    """
    layers, dtype = int(config["num_hidden_layers"]), DTYPES[reading.bytes_per_weight]
    parts = [shell(config, (i, i + 1), residency, reading).requires_grad_(False) for i in range(layers)]
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    batch = questions(config["model_type"], reading, config["vocab_size"], device)
    ids = batch.ids.flatten(0, 1)
    mask = torch.ones(ids.shape, dtype=torch.bool, device=device)
    mask[0, -1] = False  # some row is shorter
    pools = batch.pools.flatten(0, 1).to(dtype)
    rows, length = ids.shape
    visible = torch.ones(rows, length, length, dtype=torch.bool, device=device).tril()
    embedded = torch.zeros(rows, length, width, dtype=dtype, device=device)  # the text in the next model's tokens
    join = Join(embedded, mask, None, visible, True)
    storage = Elsewhere(device)

    @contextmanager
    def here(part: Block) -> Iterator[Block]:
        fill(part, device)
        storage.read_bytes += sum(t.numel() * t.element_size() for t in part.state_dict().values())
        try:
            yield part
        finally:
            drop(part)

    def adapter() -> CrossAttentionAdapter:
        with allocating("parameters"):
            tensors = {name: torch.zeros(width, width, dtype=dtype, device=device) for name in PARTS if name != "bias"}
            tensors["bias"] = torch.zeros(width, dtype=dtype, device=device)
            bridged = {"from": width, "reads": width, "to": width, "heads": heads, "key_heads": heads}
            made = CrossAttentionAdapter.build(bridged, tensors)
            made.bridged = made.bridged.to(device, dtype)
        storage.read_bytes += sum(t.numel() * t.element_size() for t in tensors.values())
        return made

    def joined(i: int) -> bool:
        return i > 0 and i % LAYERS_A_JOIN == 0

    def run() -> None:
        kept: dict[tuple[str, int], Tensor] = {}
        states = ids
        with torch.no_grad():
            for i, part in enumerate(parts):
                if joined(i):
                    kept["join", i] = states
                    states = adapter()(states, join)
                if i >= LAYERS_A_JOIN:  # no adapter stands before the others
                    kept["layer", i] = states
                with here(part):
                    states = part(states, mask)
        states.requires_grad_()
        loss = (pools @ states).float().square().mean()
        (gradient,) = torch.autograd.grad(loss, states)
        del states, loss
        for i in range(len(parts) - 1, LAYERS_A_JOIN - 1, -1):
            inputs = kept.pop(("layer", i)).requires_grad_()
            with here(parts[i]):
                (gradient,) = torch.autograd.grad(parts[i](inputs, mask), inputs, gradient)
            if joined(i):
                trained, inputs = adapter(), kept.pop(("join", i)).requires_grad_()
                with allocating("gradients"):
                    found = torch.autograd.grad(trained(inputs, join), [inputs, *trained.parameters()], gradient)
                gradient = found[0]
                for tensor in found[1:]:
                    storage.written_bytes += tensor.numel() * tensor.element_size()
                del found, trained

    return Step(run, {"temporary": [ids, mask, pools, visible, embedded]}, storage=storage,
                overlapped=residency.resident > 1)  # fmt: skip
