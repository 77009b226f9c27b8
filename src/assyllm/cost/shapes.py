"""Shapes of the real models that the zoo's members stand for, from their hub configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assyllm.artifacts import ArtifactError, read_json
from assyllm.zoo.architecture import ARCHITECTURES

# what decides a shape in the config.json of huggyllama/llama-7b, lmsys/vicuna-7b-v1.3, facebook/opt-6.7b,
# google-bert/bert-base-uncased and FacebookAI/roberta-large
_LLAMA_7B: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-7b": _LLAMA_7B,
    "vicuna-7b": _LLAMA_7B,
    "opt-6.7b": {
        "model_type": "opt", "vocab_size": 50272, "hidden_size": 4096, "ffn_dim": 16384, "word_embed_proj_dim": 4096,
        "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
    },
    "bert-base": {
        "model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2,
    },
    "roberta-large": {
        "model_type": "roberta", "vocab_size": 50265, "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "max_position_embeddings": 514, "type_vocab_size": 1,
        "pad_token_id": 1,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer's shape; ``intermediate`` is the MLP's inner width, ``positions`` learned ones."""

    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    positions: int = 0
    token_types: int = 0
    tied: bool = True
    key_value_heads: int = 0  # 0: as many as heads

    @property
    def key_value_width(self) -> int:
        """Width of a layer's keys and of its values: narrower than ``hidden`` where several heads share them."""
        return self.hidden * (self.key_value_heads or self.heads) // self.heads

    @property
    def layer_parameters(self) -> int:
        """Weights and biases of one layer."""
        h, f = self.hidden, self.intermediate
        if self.family == "llama":  # four projections, gated MLP, two RMS norms, no biases
            return 2 * h * h + 2 * h * self.key_value_width + 3 * h * f + 2 * h
        return 4 * h * h + 4 * h + 2 * h * f + h + f + 4 * h  # biases everywhere, two layer norms

    @property
    def causal(self) -> bool:
        """Whether the family reads left to right."""
        return ARCHITECTURES[self.family].causal

    @property
    def embedding_parameters(self) -> int:
        """Token, position and type embeddings, and the output matrix where it is not tied."""
        rows = self.vocabulary * (1 if self.tied else 2) + self.positions + self.token_types
        return rows * self.hidden

    @property
    def parameters(self) -> int:
        """All weights of the backbone: embeddings, layers and the norm outside the layers."""
        norm = self.hidden if self.family == "llama" else 2 * self.hidden
        return self.embedding_parameters + self.layers * self.layer_parameters + norm

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """The shape that a hub config describes.

        Raises:
            ArtifactError: an unknown family, or a config that lacks a number.
        """
        family = config.get("model_type")
        if family not in ARCHITECTURES:
            raise ArtifactError(f"model_type {family!r} is not one of {', '.join(ARCHITECTURES)}")
        inner = "ffn_dim" if family == "opt" else "intermediate_size"
        wanted = ["hidden_size", inner, "num_hidden_layers", "num_attention_heads", "vocab_size"]
        wanted += [] if family == "llama" else ["max_position_embeddings"]
        absent = [key for key in wanted if type(config.get(key)) is not int or config[key] < 1]
        if absent:
            raise ArtifactError(f"the config has no whole number from 1 as {', '.join(absent)}")
        if config["hidden_size"] % config["num_attention_heads"]:
            heads = config["num_attention_heads"]
            raise ArtifactError(f"hidden_size {config['hidden_size']} cannot be cut into {heads} num_attention_heads")
        learned = 0 if family == "llama" else int(config["max_position_embeddings"])
        return cls(
            family=family,
            hidden=config["hidden_size"],
            intermediate=config[inner],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            vocabulary=config["vocab_size"],
            positions=learned + 2 if family == "opt" else learned,  # OPT's positions start at 2
            token_types=int(config.get("type_vocab_size", 0)),
            tied=bool(config.get("tie_word_embeddings", family != "llama")),
            key_value_heads=int(config.get("num_key_value_heads") or 0),
        )


SHAPES = {name: Shape.of(config) for name, config in CONFIGS.items()}


def shape_of(stands_for: str) -> Shape:
    """The shape called ``stands_for``; an unknown name raises :class:`ArtifactError`."""
    if stands_for not in SHAPES:
        raise ArtifactError(f"no shape called {stands_for!r}; known: {', '.join(SHAPES)}")
    return SHAPES[stands_for]


def config_of(model: str) -> dict[str, Any]:
    """The hub config of a known model, or the one in the JSON file or the model's folder of that name.

    Raises:
        ArtifactError: neither a known name nor a readable config of a known family.
    """
    if model in CONFIGS:
        return dict(CONFIGS[model])
    path = Path(model) / "config.json" if Path(model).is_dir() else Path(model)
    if not path.is_file():
        raise ArtifactError(f"{model!r} is neither one of {', '.join(CONFIGS)} nor a config.json or a folder with one")
    config = dict(read_json(path))
    try:
        Shape.of(config)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return config
