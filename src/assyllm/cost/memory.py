"""Peak memory of one client's step at the true shape of a model, by arithmetic (modelled).

Counts what autograd keeps for the backward pass of transformers' own layers with fused attention, and when it
is freed: gradients replace activations as the backward pass walks down, so the peak is weights + optimizer
state + max(activations, gradients). Bytes; GB = 10^9 bytes. Temporary buffers are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from assyllm.artifacts import ArtifactError
from assyllm.cost.shapes import Shape
from assyllm.params import ASSEMBLING, Blocks, Cost

FINE_TUNING = ("ft_oracle", "ft_practical")


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
    if method in FINE_TUNING:
        return full_fine_tuning(shape, cost)
    if method in ASSEMBLING:
        return forward_only(shape, cost, edge_layers(shape, blocks), bits)
    raise ArtifactError(f"no memory model for method {method!r}")
