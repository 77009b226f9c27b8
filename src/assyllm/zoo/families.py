"""Shapes, objectives and special tokens of the four model families, as data.

What is needed to make a *new* model: a transformers configuration of a given width and depth, whether it
predicts the next token or masked ones, and the special tokens its tokenizer has. (Where an existing model keeps
its parts is :mod:`assyllm.blocks.families`.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from assyllm.artifacts import ArtifactError
from assyllm.zoo.architecture import ARCHITECTURES, Architecture, language_model


@dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    ``tokens`` maps roles to special tokens, in the order of their ids; ``template`` is what surrounds a text;
    ``extra_positions`` are rows of the position table that no token uses (RoBERTa starts after its pad id).
    """

    architecture: Architecture
    algorithm: Literal["bpe", "byte_bpe", "wordpiece"]
    specials: tuple[str, ...]
    roles: dict[str, str]
    template: str
    shape: Callable[[Any], dict[str, Any]]
    extra_positions: int = 0

    def config(self, member: Any, tokenizer: Any, max_tokens: int) -> Any:
        """The configuration of a member (section ``zoo.models.<name>``) that reads at most ``max_tokens``."""
        ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id", None) for role in ("pad", "bos", "eos")}
        return self.architecture.config_class(
            vocab_size=len(tokenizer),
            hidden_size=member.hidden_size,
            num_hidden_layers=member.layers,
            num_attention_heads=member.heads,
            max_position_embeddings=max_tokens + self.extra_positions,
            **{name: value for name, value in ids.items() if value is not None},
            **self.shape(member),
        )

    def build(self, config: Any, seed: int) -> nn.Module:
        """A language model with fresh float32 weights drawn from ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = language_model(config)
        return model


def _encoder_shape(member: Any) -> dict[str, Any]:
    return {
        "intermediate_size": member.intermediate_size,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


FAMILIES = {
    "llama": Family(
        architecture=ARCHITECTURES["llama"],
        algorithm="bpe",
        specials=("<unk>", "<s>", "</s>"),
        roles={"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "</s>"},
        template="<s> $A",
        shape=lambda m: {
            "intermediate_size": m.intermediate_size,
            "num_key_value_heads": m.key_value_heads or m.heads,
            "tie_word_embeddings": False,
        },
    ),
    "opt": Family(
        architecture=ARCHITECTURES["opt"],
        algorithm="byte_bpe",
        specials=("<s>", "<pad>", "</s>", "<unk>"),
        roles={"unk": "<unk>", "bos": "</s>", "eos": "</s>", "pad": "<pad>"},
        template="</s> $A",
        shape=lambda m: {
            "ffn_dim": m.intermediate_size,
            "word_embed_proj_dim": m.hidden_size,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    "bert": Family(
        architecture=ARCHITECTURES["bert"],
        algorithm="wordpiece",
        specials=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        roles={"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
        template="[CLS] $A [SEP]",
        shape=_encoder_shape,
    ),
    "roberta": Family(
        architecture=ARCHITECTURES["roberta"],
        algorithm="byte_bpe",
        specials=("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        roles={"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>",
               "mask": "<mask>"},
        template="<s> $A </s>",
        shape=lambda m: _encoder_shape(m) | {"type_vocab_size": 1},
        extra_positions=2,
    ),
}  # fmt: skip


def family(name: str) -> Family:
    """The entry of a family.

    Raises:
        ArtifactError: an unknown family; the known ones are named.
    """
    if name not in FAMILIES:
        raise ArtifactError(f"family {name!r}: not one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
