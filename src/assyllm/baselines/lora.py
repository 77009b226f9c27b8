"""LoRA (Hu 2022): a low-rank change of frozen linear layers, by peft's own layers. Methods ``lora``, ``lora_all``.

Only the adapters and the head are trained and travel. The two methods differ in who takes part: the clients whose
memory holds the base and its activations, or all of them.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from assyllm import seeding
from assyllm.baselines.local import Weights
from assyllm.baselines.method import OnModel
from assyllm.params import LoraTuning


def with_adapters(base: nn.Module, tuning: LoraTuning) -> nn.Module:
    """``base`` with peft's LoRA layers put in place (in this very module); only they require gradients.

    ``tuning.targets``: "query_value" is peft's choice for the family, "all" every linear layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = sorted({name.rsplit(".", 1)[-1] for name, part in base.named_modules() if isinstance(part, nn.Linear)})
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        target_modules=linear if tuning.targets == "all" else None,  # None: peft's own table of families
    )
    base.requires_grad_(False)
    return inject_adapter_in_model(config, base).eval()


class Lora(OnModel):
    """Adapters of rank ``tuning.rank``, scaled by alpha / rank; the base is frozen and shared by all clients."""

    def __init__(self, model: nn.Module, tuning: LoraTuning) -> None:
        super().__init__(model)
        self.base = with_adapters(copy.deepcopy(self.base), tuning)

    def start(self, seed: int = 0) -> Weights:
        """Down-projections drawn uniformly as peft draws them (Kaiming), up-projections and head zero."""
        weights: Weights = {}
        for name, parameter in self.base.named_parameters():
            if parameter.requires_grad:
                weights[name] = parameter.detach().clone().zero_()
                if "lora_A" in name:
                    bound = parameter.shape[1] ** -0.5
                    draws = seeding.rng("lora", seed, name).uniform(-bound, bound, parameter.shape)
                    weights[name].copy_(torch.from_numpy(draws))
        return weights | self.head()
