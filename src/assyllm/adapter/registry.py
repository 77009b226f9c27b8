"""Adapters by kind: as ``{kind, plain values}`` and named tensors, and back. A further kind is one more entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from assyllm.adapter.base import Adapter
from assyllm.adapter.cross_attention import CrossAttentionAdapter
from assyllm.adapter.fixed_attention import FixedAttentionAdapter
from assyllm.adapter.linear import LinearAdapter
from assyllm.artifacts import ArtifactError

KINDS: dict[str, type[Adapter]] = {
    kind.kind: kind for kind in (LinearAdapter, FixedAttentionAdapter, CrossAttentionAdapter)
}


def describe(adapter: Adapter) -> dict[str, Any]:
    """What stands in a recipe or a checkpoint: ``{"kind": ..., ...}``; the tensors are its ``state_dict``."""
    return {"kind": adapter.kind, **adapter.config()}


def build(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    """An adapter from its description and its tensors, frozen and in evaluation mode.

    Raises:
        ArtifactError: an unknown kind, or tensors or values that do not fit it.
    """
    if not isinstance(described, Mapping):
        raise ArtifactError(f"adapter {described!r}: a mapping with a kind is expected")
    values = dict(described)
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise ArtifactError(f"adapter kind {kind!r}: not one of {', '.join(KINDS)}")
    try:
        adapter = KINDS[kind].build(values, tensors)
    except (KeyError, ValueError, TypeError, IndexError, ArithmeticError, RuntimeError) as error:
        raise ArtifactError(f"{kind} adapter: its tensors do not fit ({' '.join(str(error).split())})") from None
    if describe(adapter) != dict(described):
        raise ArtifactError(f"{kind} adapter: described as {dict(described)}, its tensors say {describe(adapter)}")
    return adapter.eval().requires_grad_(False)
