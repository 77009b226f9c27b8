"""Module names of the four model families, as data: a further family is one more entry, not one more ``if``.

Every entry says where transformers' own language model keeps its embeddings, layers, final norm, rotary
embedding and language-model head. Nothing is re-implemented here; blocks call these very modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from assyllm.artifacts import ArtifactError
from assyllm.zoo.architecture import ARCHITECTURES, Architecture, language_model

Embed = Callable[[nn.ModuleDict, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FamilySpec:
    """Where a family's language model keeps its parts.

    ``trunk`` is the path from the language model to its base model; ``embeddings``, ``layers``, ``norm`` and
    ``rotary`` are paths inside the trunk (``norm`` and ``rotary`` may be absent), ``head`` are paths from the
    language model, applied one after the other to the last hidden state (absent ones are skipped).
    """

    architecture: Architecture
    trunk: str
    embeddings: tuple[str, ...]
    layers: str
    norm: str | None
    rotary: str | None
    head: tuple[str, ...]
    embed: Embed

    def build(self, config: Any) -> nn.Module:
        """The language model of ``config`` as transformers defines it, its weights on the meta device."""
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            model: nn.Module = language_model(config)
        return model

    def config(self, values: dict[str, Any]) -> Any:
        """transformers' config object from the contents of a ``config.json``."""
        return self.architecture.config_class.from_dict(dict(values))


def find(module: nn.Module, path: str | None) -> nn.Module | None:
    """The submodule at a dotted path, or None where the model has none there."""
    for name in (path or "").split("."):
        module = getattr(module, name, None)  # type: ignore[assignment]
        if module is None:
            return None
    return module


def family(name: str) -> FamilySpec:
    """The entry of a family.

    Raises:
        ArtifactError: an unknown family; the known ones are named.
    """
    if name not in FAMILIES:
        raise ArtifactError(f"family {name!r}: not one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _embed_llama(parts: nn.ModuleDict, ids: Tensor, mask: Tensor) -> Tensor:
    return parts["embed_tokens"](ids)


def _embed_opt(parts: nn.ModuleDict, ids: Tensor, mask: Tensor) -> Tensor:
    # OPT's learned positions count real tokens; padding reads the position before the first one.
    counted = mask.long()
    positions = (torch.cumsum(counted, dim=1) * counted - 1).long()
    embedded = parts["embed_tokens"](ids)
    if "project_in" in parts:  # opt-350m: word vectors narrower than the layers
        embedded = parts["project_in"](embedded)
    return embedded + parts["embed_positions"](counted, 0, position_ids=positions)


def _embed_bert(parts: nn.ModuleDict, ids: Tensor, mask: Tensor) -> Tensor:
    return parts["embeddings"](input_ids=ids)


FAMILIES: dict[str, FamilySpec] = {
    "llama": FamilySpec(
        architecture=ARCHITECTURES["llama"],
        trunk="model",
        embeddings=("embed_tokens",),
        layers="layers",
        norm="norm",
        rotary="rotary_emb",
        head=("lm_head",),
        embed=_embed_llama,
    ),
    "opt": FamilySpec(
        architecture=ARCHITECTURES["opt"],
        trunk="model.decoder",
        embeddings=("embed_tokens", "embed_positions", "project_in"),
        layers="layers",
        norm="final_layer_norm",  # absent in opt-350m, which normalises after each layer
        rotary=None,
        head=("model.decoder.project_out", "lm_head"),
        embed=_embed_opt,
    ),
    "bert": FamilySpec(
        architecture=ARCHITECTURES["bert"],
        trunk="bert",
        embeddings=("embeddings",),
        layers="encoder.layer",
        norm=None,
        rotary=None,
        head=("cls",),
        embed=_embed_bert,
    ),
    "roberta": FamilySpec(
        architecture=ARCHITECTURES["roberta"],
        trunk="roberta",
        embeddings=("embeddings",),
        layers="encoder.layer",
        norm=None,
        rotary=None,
        head=("lm_head",),
        embed=_embed_bert,
    ),
}
