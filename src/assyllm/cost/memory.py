"""Peak memory of one client's step at the true shape of a model, by arithmetic (modelled).

Counts what autograd keeps for the backward pass of transformers' own layers with fused attention, and when it
is freed: gradients replace activations as the backward pass walks down, so the peak is weights + optimizer
state + max(activations, gradients). Bytes; GB = 10^9 bytes. Temporary buffers are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from assyllm.artifacts import ArtifactError
from assyllm.cost.shapes import Shape
from assyllm.params import ASSEMBLING, Blocks, Cost, FedAdapterTuning

FINE_TUNING = ("ft_oracle", "ft_practical")
LORA = ("lora", "lora_all")
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # a weight, its share of a block's 8-bit scale and of that scale's own


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak memory in bytes, by category."""

    parameters: float = 0.0
    gradients: float = 0.0
    activations: float = 0.0
    optimizer: float = 0.0

    @property
    def total(self) -> float:
        """Bytes at the peak (activations and gradients do not coexist in full)."""
        return self.parameters + self.optimizer + max(self.activations, self.gradients)


def saved_activations(shape: Shape, tokens: int, bytes_per_weight: int) -> float:
    """Bytes that one layer keeps for its backward pass over ``tokens`` tokens.

    Llama: per norm a float32 copy, the normalised states and the scaled ones; queries, keys, values, attention
    output and its reshaped copy; four tensors of the gated MLP. OPT, BERT, RoBERTa: per norm its input and
    output; the same attention tensors; the inner MLP state (twice for GELU, which keeps its input).
    """
    h, f, b = shape.hidden, shape.intermediate, bytes_per_weight
    attention = 5 * b * h
    if shape.family == "llama":
        return tokens * (2 * (4 * h + 2 * b * h) + attention + 4 * b * f)
    inner = b * f if shape.family == "opt" else 2 * b * f
    return tokens * (2 * 2 * b * h + attention + inner)


def full_fine_tuning(shape: Shape, cost: Cost) -> Peak:
    """Every weight trained, gradients in the weights' precision, SGD without state or AdamW with two moments."""
    weights = shape.parameters * cost.bytes_per_weight
    return Peak(
        parameters=weights,
        gradients=weights,
        activations=shape.layers * saved_activations(shape, cost.batch * cost.tokens, cost.bytes_per_weight),
        optimizer=2 * weights if cost.optimizer == "adamw" else 0.0,
    )


def forward_only(shape: Shape, cost: Cost, resident_layers: int, bits: float) -> Peak:
    """A forward pass with ``resident_layers`` layers and the embeddings resident at ``bits`` a weight."""
    tokens, h, f = cost.batch * cost.tokens, shape.hidden, shape.intermediate
    weights = (shape.embedding_parameters + resident_layers * shape.layer_parameters) * bits / 8
    return Peak(parameters=weights, activations=tokens * cost.bytes_per_weight * (2 * h + 2 * f))


def frozen_activations(shape: Shape, tokens: int, bytes_per_weight: int, inputs: str = "none") -> float:
    """Bytes that one layer with frozen weights keeps over ``tokens`` tokens.

    A frozen linear layer does not keep its input, a frozen norm not its normalised states.

    Args:
        inputs: of the linear layers that an adapter reads: "none", "query_value", or "all" (as if not frozen, less what
            frozen norms drop).
    """
    h, f, b = shape.hidden, shape.intermediate, bytes_per_weight
    read = {"none": 0, "query_value": b * h, "all": 2 * b * h + b * f}[inputs]
    if shape.family == "llama":
        return tokens * (2 * 4 * h + 5 * b * h + 3 * b * f + read)
    inner = b * f if shape.family == "opt" else 2 * b * f
    return tokens * (2 * b * h + 5 * b * h + inner + read)


def forward_buffers(shape: Shape, cost: Cost) -> float:
    """Bytes alive at once inside one layer's forward pass: the MLP's inner tensors, two states in 32 bit."""
    return cost.batch * cost.tokens * (4 * cost.bytes_per_weight * shape.intermediate + 8 * shape.hidden)


def base_weights(shape: Shape, cost: Cost, nf4: bool = False) -> float:
    """Bytes of a frozen base: 16 (or 32) bit, or its layers in nf4 with double quantisation."""
    layers = shape.layers * shape.layer_parameters
    rest = (shape.parameters - layers) * cost.bytes_per_weight
    return rest + layers * (NF4_BITS / 8 if nf4 else cost.bytes_per_weight)


def adapters(
    shape: Shape, cost: Cost, inputs: str, *, layers: int | None = None, nf4: bool = False, checkpointed: bool = False
) -> Peak:
    """Adapters on a frozen base; their own weights, gradients and state are not counted (below 1 % of the base).

    Args:
        inputs: see :func:`frozen_activations`.
        layers: how many of the top layers have adapters; the layers below keep nothing.
        checkpointed: only a state a layer is kept, and one layer's activations at a time.
    """
    tokens, b = cost.batch * cost.tokens, cost.bytes_per_weight
    one, number = frozen_activations(shape, tokens, b, inputs), shape.layers if layers is None else layers
    kept = number * tokens * b * shape.hidden + one if checkpointed else number * one
    return Peak(parameters=base_weights(shape, cost, nf4), activations=kept + forward_buffers(shape, cost))


def recomputation(shape: Shape, cost: Cost) -> Peak:
    """Full fine-tuning with torch's checkpointing alone: all weights and gradients, a state a layer."""
    full = full_fine_tuning(shape, cost)
    tokens, b = cost.batch * cost.tokens, cost.bytes_per_weight
    kept = shape.layers * tokens * b * shape.hidden
    transient = saved_activations(shape, tokens, b)
    return Peak(full.parameters, 0.0, kept + full.gradients + transient, full.optimizer)


def streamed(shape: Shape, cost: Cost) -> Peak:
    """Full fine-tuning with one stage in memory (baselines/stream.py): its weights, gradients, state, activations."""
    stage = max(shape.layer_parameters, shape.embedding_parameters / (1 if shape.tied else 2)) * cost.bytes_per_weight
    activations = saved_activations(shape, cost.batch * cost.tokens, cost.bytes_per_weight)
    return Peak(stage, 0.0, stage + activations, 2 * stage if cost.optimizer == "adamw" else 0.0)


def edge_layers(shape: Shape, blocks: Blocks) -> int:
    """Layers of the largest block that the segmentation rule makes of this shape."""
    from assyllm.blocks.segment import segments

    return max(segments(shape.layers, blocks))


def peak_memory(method: str, shape: Shape, cost: Cost, blocks: Blocks, bits: float) -> Peak:
    """Peak memory of one client's step of ``method``.

    Raises:
        ArtifactError: the method has no memory model.
    """
    if method == "majority":
        return Peak()
    if method == "zero_shot":
        return forward_only(shape, cost, shape.layers, 8 * cost.bytes_per_weight)
    if method in ("one_model_head", "choices_only"):
        return forward_only(shape, cost, shape.layers, 8 * cost.bytes_per_weight)
    if method in FINE_TUNING:
        return full_fine_tuning(shape, cost)
    if method in LORA:
        return adapters(shape, cost, "all")
    if method == "qlora":
        return adapters(shape, cost, "all", nf4=True)
    if method == "qlora_recomputation":
        return adapters(shape, cost, "all", nf4=True, checkpointed=True)
    if method == "fedadapter":
        return adapters(shape, cost, "query_value", layers=int(FedAdapterTuning.MAX_DEPTH * shape.layers))
    if method == "fwdllm":
        return adapters(shape, cost, "none", layers=0)
    if method in ("recomputation", "swapping"):
        return streamed(shape, cost)
    if method in ASSEMBLING:
        return forward_only(shape, cost, edge_layers(shape, blocks), bits)
    raise ArtifactError(f"no memory model for method {method!r}")
