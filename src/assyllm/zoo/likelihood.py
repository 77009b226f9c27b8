"""Likelihood scoring: what a pre-trained model answers without any training (acc and acc_norm)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from assyllm.artifacts import ArtifactError
from assyllm.zoo.encoding import encode
from assyllm.zoo.forward import inputs, is_causal, pack

if TYPE_CHECKING:
    from assyllm.tasks.record import Question

CHUNK_TOKENS = 4096  # tokens of one forward pass


def option_likelihoods(model: nn.Module, tokenizer: Any, questions: Sequence[Question], max_tokens: int) -> Tensor:
    """Log-likelihood of every choice given its stem, without training.

    Decoders: sum of log p(token | everything before it) over the tokens after the stem (where a tokenizer keeps the
    space before the choice as a token of its own, it counts). Encoders with a masked
    language head: all tokens of the choice are replaced by the mask token, and their log-probabilities summed
    (a pseudo-log-likelihood; Salazar 2020 masks one at a time, which favours words of several pieces).

    Args:
        model: transformers model with its language head.

    Returns:
        float64 tensor [N, C]; padding choices are minus infinity.
    """
    encoded = encode(tokenizer, questions, max_tokens, slot=False)
    causal = is_causal(model)
    if not causal and tokenizer.mask_token_id is None:
        raise ArtifactError("an encoder without a mask token cannot score choices")
    result = torch.full(encoded.choice_mask.shape, -torch.inf, dtype=torch.float64)
    lengths = encoded.mask.sum(-1).amax(-1)
    order = torch.argsort(lengths, stable=True)
    start = 0
    while start < len(order):
        size = max(1, CHUNK_TOKENS // max(1, int(lengths[order[start]]) * encoded.ids.shape[1]))
        index = order[start : start + size]
        part = encoded[index]
        rows = pack(part, causal=False)
        tokens = part.ids.flatten(0, 1)
        counted = part.chosen
        if causal:
            stems = torch.tensor([len(questions[n].stem) for n in index.tolist()])[:, None, None]
            counted = counted | (part.mask & (part.spans[..., 1] > stems))
        chosen = (counted & part.choice_mask[..., None]).flatten(0, 1)
        arguments = inputs(model.config, rows)
        if not causal:
            arguments["input_ids"] = tokens.masked_fill(chosen, tokenizer.mask_token_id)
        with torch.no_grad():
            logits = model(**arguments).logits
        if causal:
            logits, tokens, chosen = logits[:, :-1], tokens[:, 1:], chosen[:, 1:]
        log_probabilities = torch.zeros(chosen.shape, dtype=torch.float64)
        log_probabilities[chosen] = torch.log_softmax(logits[chosen].double(), dim=-1).gather(
            -1, tokens[chosen][:, None]
        )[:, 0]
        sums = log_probabilities.sum(-1).reshape(part.choice_mask.shape)
        result[index] = sums.masked_fill(~part.choice_mask, -torch.inf)
        start += size
    return result


def zero_shot(
    model: nn.Module, tokenizer: Any, questions: Sequence[Question], max_tokens: int
) -> dict[str, np.ndarray]:
    """Choices [N] by likelihood: ``acc`` by its sum, ``acc_norm`` by its sum over the choice's characters.

    Both as lm-evaluation-harness has them (``benchmarks/lm_eval_agreement.py`` compares item by item).
    """
    likelihoods = option_likelihoods(model, tokenizer, questions, max_tokens)
    sizes = torch.ones_like(likelihoods)
    for n, question in enumerate(questions):
        for c, choice in enumerate(question.choices):
            sizes[n, c] = max(1, len(choice))
    return {
        "acc": likelihoods.argmax(-1).numpy(),
        "acc_norm": (likelihoods / sizes).argmax(-1).numpy(),
    }
