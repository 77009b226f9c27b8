"""Names that params.yaml may use: tasks, families, methods and what is common to some of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Task = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
PUBLISHED = ("boolq", "piqa", "openbookqa")  # tasks that the world and the hub have; any other is one's own JSON lines
Family = Literal["llama", "opt", "bert", "roberta"]
StandsFor = Literal["llama-7b", "vicuna-7b", "opt-6.7b", "bert-base", "roberta-large"]
Method = Literal[
    "majority", "server_head", "zero_shot", "choices_only", "one_model_head", "all_models_head", "ft_oracle",
    "ft_practical", "lora", "lora_all", "qlora", "qlora_recomputation", "fedadapter", "fwdllm", "recomputation",
    "swapping", "assyllm_paper", "assyllm", "random_blocks", "untrained_blocks", "one_model_blocks",
]  # fmt: skip
TUNED = ("ft_oracle", "ft_practical", "lora", "lora_all", "qlora", "qlora_recomputation", "fedadapter", "fwdllm")
# methods whose step gives another's gradients: its tuning, and its run where the same clients take part
SHARES = {"recomputation": "ft_oracle", "swapping": "ft_oracle"}
LOW_RANK = ("lora", "lora_all", "qlora", "qlora_recomputation", "fwdllm")  # train low-rank adapters
# methods over a model whose own weights stay as they are: `frozen_base.bits` says in how many bits (qlora: 4)
FROZEN_BASE = ("lora", "lora_all", "fedadapter", "fwdllm")
# closed-form heads, settings under `baselines.closed_form`
HEADS = ("one_model_head", "all_models_head", "choices_only")
ALL_MODELS = ("all_models_head", "server_head")  # heads on what every member of the zoo reads
NO_DEVICE = ("majority", "server_head")  # ask no client to compute anything
BASELINES = (*NO_DEVICE, "zero_shot", *HEADS, *TUNED, *SHARES)
ASSEMBLING = ("assyllm_paper", "assyllm", "random_blocks", "untrained_blocks", "one_model_blocks")
# controls: a method's settings with a variant of its selection rule, or on untrained blocks
CONTROLS = {
    "random_blocks": ("assyllm", "random"),
    "untrained_blocks": ("assyllm", None),
    "one_model_blocks": ("assyllm", "one_model"),
}
