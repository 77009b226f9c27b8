"""A block: consecutive layers of one pre-trained model, run by transformers' own modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from assyllm.artifacts import ArtifactError
from assyllm.blocks.families import family as family_of

Kind = Literal["start", "middle", "end"]
Batch = tuple[Tensor, Tensor]  # hidden [B, T, d] (or ids [B, T]), mask [B, T]


def block_id(model: str, first: int, last: int) -> str:
    """The id of layers ``first`` .. ``last - 1`` of a model, e.g. ``llama:0-8``."""
    return f"{model}:{first}-{last}"


def kind_of(first: int, last: int, layers: int) -> Kind:
    """start (embedding and first layers), end (last layers and final norm), else middle."""
    return "start" if first == 0 else "end" if last == layers else "middle"


class Block(nn.Module):
    """Layers ``layers[0]`` .. ``layers[1] - 1`` of a model; a start block embeds, an end block normalises.

    Attention is the block's own habit: causal in Llama and OPT, bidirectional in BERT and RoBERTa, whatever
    blocks stand around it. Positions are the stream's, counted from 0; padding stands on the right.
    """

    def __init__(
        self,
        model: str,
        family: str,
        layers: tuple[int, int],
        kind: Kind,
        config: Any,
        embed: nn.ModuleDict,
        stack: nn.ModuleList,
        norm: nn.Module | None,
        rotary: nn.Module | None,
    ) -> None:
        super().__init__()
        self.id = block_id(model, *layers)
        self.model = model
        self.family = family
        self.kind: Kind = kind
        self.layers = layers
        self.width = int(config.hidden_size)
        self.config = config
        self.embed = embed
        self.stack = stack
        self.norm = norm
        self.rotary = rotary
        self.leaves = False  # whether its layers may be gone when a backward pass comes to them

    @property
    def causal(self) -> bool:
        """Whether a token sees only the tokens before it."""
        return family_of(self.family).architecture.causal

    def attention_mask(self, hidden: Tensor, mask: Tensor) -> Any:
        """The mask that transformers' own model would make for this family and attention kernel."""
        from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

        if self.causal:
            return create_causal_mask(self.config, hidden, mask, None)  # no cache
        return create_bidirectional_mask(self.config, hidden, mask)

    def trace(self, hidden: Tensor, mask: Tensor) -> list[Tensor]:
        """The state after each layer, the last one after the final norm in an end block.

        Args:
            hidden: ``[B, T, d]`` states, or ``[B, T]`` token ids for a start block.
            mask: ``[B, T]`` bool, True at real tokens.

        Returns:
            One ``[B, T, d]`` tensor a layer.
        """
        return self.traces([(hidden, mask)])[0]

    def traces(self, batches: Sequence[Batch]) -> list[list[Tensor]]:
        """:meth:`trace` of several batches, layer outer and batches inner: a swapped layer is read once for all."""
        return [list(states) for states in zip(*self._layers(batches), strict=True)]

    def each(self, batches: Sequence[Batch]) -> list[Tensor]:
        """:meth:`forward` of several batches, layer outer and batches inner."""
        states: list[Tensor] = []
        for after in self._layers(batches):
            states = after
        return states

    def _layers(self, batches: Sequence[Batch]) -> Iterator[list[Tensor]]:
        """The batches' states after each layer."""
        states, extras = [], []
        for hidden, mask in batches:
            entered, extra = self._enter(hidden, mask)
            states.append(entered)
            extras.append(extra)
        for i, layer in enumerate(self.stack):
            states = [self._run(layer, hidden, extra) for hidden, extra in zip(states, extras, strict=True)]
            if self.norm is not None and i == len(self.stack) - 1:
                states = [self.norm(hidden) for hidden in states]
            yield states

    def _run(self, layer: nn.Module, hidden: Tensor, extra: dict[str, Any]) -> Tensor:
        """A layer's states; one that may leave is run again when the gradient comes, and so asked for again."""
        if self.leaves and torch.is_grad_enabled() and hidden.requires_grad:
            return checkpoint(layer, hidden, use_reentrant=False, **extra)
        return layer(hidden, **extra)

    def _enter(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """What the first layer takes: states, and the arguments that all layers share."""
        if self.kind == "start":
            if hidden.dim() != 2:
                raise ArtifactError(f"block {self.id}: a start block takes token ids [B, T]")
            hidden = family_of(self.family).embed(self.embed, hidden, mask)
        elif hidden.dim() != 3 or hidden.shape[-1] != self.width:
            raise ArtifactError(f"block {self.id}: states [B, T, {self.width}] expected, {list(hidden.shape)} given")
        extra: dict[str, Any] = {"attention_mask": self.attention_mask(hidden, mask)}
        if self.rotary is not None:
            positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
            extra["position_embeddings"] = self.rotary(hidden, position_ids=positions)
        return hidden, extra

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Ids ``[B, T]`` (start) or states ``[B, T, d]`` and the mask ``[B, T]`` to states ``[B, T, d]``."""
        return self.each([(hidden, mask)])[0]

    def tensors(self) -> dict[str, Tensor]:
        """The block's own weights by name (no buffers that the config gives)."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}
