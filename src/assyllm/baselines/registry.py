"""Fine-tuning methods by name: how each is built on a model and its settings. A further one: an entry and a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assyllm.baselines.fedadapter import FedAdapter
from assyllm.baselines.full import FullFineTuning
from assyllm.baselines.fwdllm import FwdLLM
from assyllm.baselines.lora import Lora
from assyllm.baselines.method import Method
from assyllm.baselines.one_model_head import AllModelsHead, ChoicesOnly, OneModelHead, ServerHead
from assyllm.baselines.qlora import QLora
from assyllm.baselines.qlora_recomputation import QLoraRecomputation
from assyllm.baselines.recomputation import Recomputation
from assyllm.baselines.swapping import Swapping

METHODS: dict[str, Callable[[Any, Any], Method]] = {  # a model, and the method's tuning (heads: params.ClosedForm)
    "ft_oracle": FullFineTuning,
    "ft_practical": FullFineTuning,
    "lora": Lora,
    "lora_all": Lora,
    "qlora": QLora,
    "qlora_recomputation": QLoraRecomputation,
    "fedadapter": FedAdapter,
    "fwdllm": FwdLLM,
    "recomputation": Recomputation,
    "swapping": Swapping,
    "one_model_head": OneModelHead,
    "all_models_head": OneModelHead,  # on each model; TOGETHER is on what they read
    "server_head": OneModelHead,
    "choices_only": ChoicesOnly,
}
TOGETHER: dict[str, type[AllModelsHead]] = {"all_models_head": AllModelsHead, "server_head": ServerHead}
