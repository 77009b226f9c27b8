"""What tests of the baselines share: tiny models, packed questions of eight clients, gradients."""

from __future__ import annotations

from functools import cache

import torch

from assyllm import params as P
from assyllm.baselines.full import FullFineTuning
from assyllm.baselines.local import Weights
from assyllm.baselines.method import Data
from assyllm.zoo.encoding import encode
from assyllm.zoo.forward import Packed, pack
from tiny import zoo as tiny

torch.set_num_threads(1)
CLIENTS = 8
OWNED = [[0, 1, 2, 3, 4], [5], [], [6, 7], list(range(8, 20)), [20, 21, 22], [23], [24, 25, 26, 27, 28, 29]]
COMMON = {"server_rate": 0.01, "rounds": 4, "local_epochs": 1, "batch": 4}
LORA = P.LoraTuning(**COMMON, rank=2, alpha=4, targets="all")
GROWING = P.FedAdapterTuning(**COMMON, width=4, wider=4, trial_every=2, trial_rounds=1)
FORWARD = P.FwdLLMTuning(**COMMON, rank=1, alpha=2, targets="query_value", directions=2)
FAMILIES = ["llama", "opt", "bert", "roberta"]


@cache
def tokenizer(family: str):
    return tiny.tokenizer(family)


def fresh(family: str):
    made = tiny.model(family, len(tokenizer(family)), tokenizer(family).pad_token_id)
    made.set_attn_implementation("eager")
    return made


@cache
def model(family: str = "llama"):
    return fresh(family)


@cache
def method(family: str = "llama", dtype: torch.dtype = torch.float32) -> FullFineTuning:
    return FullFineTuning(fresh(family).to(dtype))


def packed(family: str, split: str, number: int, task: str = "openbookqa"):
    encoded = encode(tokenizer(family), tiny.questions(task, split, number), 48)
    return pack(encoded, method(family).causal)


@cache
def data(family: str = "llama") -> Data:
    return Data(packed(family, "train", 30), packed(family, "dev", 16), packed(family, "test", 20), OWNED)


def shaken(weights: Weights, scale: float = 0.1) -> Weights:
    """Weights at which no gradient is zero by construction."""
    draw = torch.Generator().manual_seed(0)
    return {name: t + scale * torch.randn(t.shape, generator=draw).to(t.dtype) for name, t in weights.items()}


def gradients(loss, weights: Weights, batch: Packed) -> Weights:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    value = loss(leaves, batch, torch.ones(len(batch)))
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def difference(ours: Weights, theirs: Weights) -> float:
    """Largest difference of an entry, relative to its tensor's largest."""
    return max(float((ours[n] - t).abs().max() / t.abs().max().clamp(min=1e-30)) for n, t in theirs.items())
