"""Rows for the server's own fits: words of public text, aligned over unlike tokenizers by their offsets.

A word's state in a model is the mean over the tokens that overlap it. Words are aligned between any two
tokenizers, and give many more rows than texts do. Only public text may be used so: sums over the words of a
client's text would give its words away (method.md, section 4), which is why clients' rows are examples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assyllm.zoo.encoding import Encoded, pad_id, prefix_and_suffix


def encode_words(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> tuple[Encoded, Tensor]:
    """Texts as rows whose pooled vectors are their words.

    Args:
        texts: N lines of public text.
        max_tokens: longer rows are cut.

    Returns:
        ``Encoded`` with one "choice" a text and W pooled vectors (W = most words of a text); and ``[N, W]``
        bool, True where the word is there in full.
    """
    prefix, suffix = prefix_and_suffix(tokenizer)
    room = max_tokens - len(prefix) - len(suffix)
    batch = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    spans = [[m.span() for m in re.finditer(r"\S+", text)] for text in texts]
    tokens = [row[:room] for row in batch["input_ids"]]
    length = max((len(row) for row in tokens), default=1) + len(prefix) + len(suffix)
    words = max((len(row) for row in spans), default=1)
    number = len(tokens)
    ids = np.full((number, 1, length), pad_id(tokenizer), dtype=np.int64)
    mask = np.zeros((number, 1, length), dtype=bool)
    pools = np.zeros((number, 1, words, length), dtype=np.float32)
    whole = np.zeros((number, words), dtype=bool)
    for n, row in enumerate(tokens):
        full = prefix + row + suffix
        ids[n, 0, : len(full)], mask[n, 0, : len(full)] = full, True
        offsets = np.asarray(batch["offset_mapping"][n]).reshape(-1, 2)
        for w, (start, end) in enumerate(spans[n]):
            touching = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
            if len(touching) and touching[-1] < len(row):
                pools[n, 0, w, touching + len(prefix)] = 1 / len(touching)
                whole[n, w] = True
    encoded = Encoded(
        ids=torch.from_numpy(ids),
        mask=torch.from_numpy(mask),
        chosen=torch.zeros(number, 1, length, dtype=torch.bool),
        pools=torch.from_numpy(pools),
        choice_mask=torch.from_numpy(mask.any(-1)),
        answer=torch.zeros(number, dtype=torch.int64),
    )
    return encoded, torch.from_numpy(whole)
