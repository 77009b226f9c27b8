"""What every kind of adapter has in common: a kind, a few plain values, named tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from assyllm.adapter.reading import Join, Readings


class Adapter(nn.Module):
    """A frozen module that stands before a block and makes the arriving states fit it.

    A kind keeps its tensors as parameters or buffers (``state_dict`` is what is stored), gives the plain values
    that rebuild it as :meth:`config`, and takes both back in :meth:`build`. ``registry.KINDS`` lists the kinds.
    """

    kind: ClassVar[str]
    reads: ClassVar[bool] = False  # whether it looks at the next model's own reading of the text
    moves: ClassVar[bool] = False  # whether the stream goes on in the next block's own tokens

    def config(self) -> dict[str, Any]:
        """Plain values (numbers, strings, lists) that stand in recipes and checkpoints beside the tensors."""
        raise NotImplementedError

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of :meth:`config` and ``state_dict``."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    @property
    def sent_bytes(self) -> int:
        """Bytes that travel with a task: all that does not ship with the pool."""
        return self.bytes

    def through(
        self, states: Sequence[Tensor], readings: Readings, tokens: str, model: str, causal: bool
    ) -> tuple[list[Tensor], str]:
        """Per-chunk states in one model's tokens to what a block of another receives, and whose tokens those are."""
        if not self.reads:
            return [self(hidden) for hidden in states], tokens
        joins = readings.joins(tokens, model, causal)
        return [self(hidden, join) for hidden, join in zip(states, joins, strict=True)], model if self.moves else tokens

    def forward(self, states: Tensor, join: Join) -> Tensor:
        """Arriving states ``[r, A, a]`` to what the block receives, ``[r, A, e]`` or ``[r, T, e]`` if it moves."""
        raise NotImplementedError
