"""The paper's cross-attention adapter (section 3.3): the arriving stream looks at the next block's own context.

Queries come from the arriving states, keys and values from the next model's embedding of the same text, in that
model's own tokens: softmax(Q K' / sqrt(k)) V, then an output projection, added to the closed-form projection of
the arriving states. The stream keeps its tokens, so no token of one model needs a partner in the other's.

Heads: queries have as many as the arriving model, keys and values as many as the next one; :func:`bridge` pools
or repeats the latter. The output projection begins at zero, so that an untrained adapter is the projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from assyllm import seeding
from assyllm.adapter.base import Adapter
from assyllm.adapter.linear import LinearAdapter
from assyllm.adapter.reading import Join

PARTS = ("weight", "bias", "query", "key", "value", "out")


def bridge(heads: int, key_heads: int) -> Tensor:
    """How much of each key head a query head reads, ``[heads, key_heads]``, rows sum to one.

    Both lists of heads are laid over one unit interval; a query head reads the key heads that its part covers.
    With fewer key heads each serves several query heads (8 to 1, 8 to 4), with more they are pooled (4 to 8),
    and in between they share (6 to 8).
    """
    edges, key_edges = torch.linspace(0, 1, heads + 1), torch.linspace(0, 1, key_heads + 1)
    left = torch.maximum(edges[:-1, None], key_edges[None, :-1])
    right = torch.minimum(edges[1:, None], key_edges[None, 1:])
    shared = (right - left).clamp(min=0)
    shared = torch.where(shared < 1e-6, 0.0, shared)
    return shared / shared.sum(-1, keepdim=True)


class CrossAttentionAdapter(Adapter):
    """``states @ weight + bias + attention(states, next model's embedding) @ out``."""

    kind: ClassVar[str] = "cross_attention"
    reads: ClassVar[bool] = True
    bridged: Tensor
    weight: Tensor
    bias: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        heads: int,
        key_heads: int,
    ) -> None:
        super().__init__()
        size = query.shape[1] // heads
        if query.shape[1] != heads * size or key.shape[1] != key_heads * size or out.shape[0] != heads * size:
            raise ValueError(f"{heads} and {key_heads} heads with query {list(query.shape)}, key {list(key.shape)}")
        for name, tensor in zip(PARTS, (weight, bias, query, key, value, out), strict=True):
            setattr(self, name, nn.Parameter(tensor))
        self.heads, self.key_heads, self.size = heads, key_heads, size
        self.register_buffer("bridged", bridge(heads, key_heads), persistent=False)

    @classmethod
    def start(cls, projection: LinearAdapter, reads: int, heads: int, key_heads: int, name: str) -> Self:
        """The adapter that computes what ``projection`` does, its attention drawn by seed.

        Args:
            reads: width of the next model's embedding.
            name: of the join.
        """
        size = max(1, reads // key_heads)
        arrives, receives = projection.weight.shape

        def drawn(part: str, rows: int, columns: int) -> Tensor:
            generator = seeding.rng("cross attention", name, part)
            return torch.from_numpy(generator.standard_normal((rows, columns), dtype="float32")) / rows**0.5

        return cls(
            projection.weight.clone(),
            projection.bias.clone(),
            drawn("query", arrives, heads * size),
            drawn("key", reads, key_heads * size),
            drawn("value", reads, key_heads * size),
            torch.zeros(heads * size, receives),
            heads,
            key_heads,
        )

    def config(self) -> dict[str, Any]:
        """The widths that it joins and reads, and both numbers of heads."""
        return {
            "from": self.weight.shape[0],
            "reads": self.key.shape[0],
            "to": self.weight.shape[1],
            "heads": self.heads,
            "key_heads": self.key_heads,
        }

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        parts = {name: tensors[name] for name in PARTS}
        return cls(**parts, heads=config["heads"], key_heads=config["key_heads"])

    def forward(self, states: Tensor, join: Join) -> Tensor:
        query = (states @ self.query).unflatten(-1, (self.heads, self.size))
        keys = (join.embedded @ self.key).unflatten(-1, (self.key_heads, self.size))
        values = (join.embedded @ self.value).unflatten(-1, (self.key_heads, self.size))
        keys = torch.einsum("qh,rthk->rtqk", self.bridged, keys)
        values = torch.einsum("qh,rthk->rtqk", self.bridged, values)
        scores = torch.einsum("raqk,rtqk->rqat", query, keys) / self.size**0.5
        weights = scores.masked_fill(~join.visible.unsqueeze(1), float("-inf")).softmax(-1)
        seen = torch.einsum("rqat,rtqk->raqk", weights, values).flatten(-2)
        return states @ self.weight + self.bias + seen @ self.out
