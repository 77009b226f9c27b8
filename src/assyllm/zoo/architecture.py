"""The model families that are known here: transformers' classes of each, and which way it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family's classes in transformers."""

    language_model: str
    config: str
    causal: bool  # reads left to right; an encoder both ways

    @property
    def model_class(self) -> Any:
        """transformers' class of the language model."""
        import transformers

        return getattr(transformers, self.language_model)

    @property
    def config_class(self) -> Any:
        """transformers' class of its configuration."""
        import transformers

        return getattr(transformers, self.config)


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", "LlamaConfig", causal=True),
    "opt": Architecture("OPTForCausalLM", "OPTConfig", causal=True),
    "bert": Architecture("BertForMaskedLM", "BertConfig", causal=False),
    "roberta": Architecture("RobertaForMaskedLM", "RobertaConfig", causal=False),
}


def language_model(config: Any) -> Any:
    """A language model of transformers with fresh weights, of a config of a known family."""
    return ARCHITECTURES[config.model_type].model_class(config)
