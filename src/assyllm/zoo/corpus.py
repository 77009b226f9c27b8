"""Text -> rows of token ids that a model is pre-trained on: the generated world's sentences, or any plain text."""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assyllm.artifacts import ArtifactError
from assyllm.tasks.world import Row

DOCUMENT_END = "<|endoftext|>"  # a line of its own between two documents; blank lines part them where there is none
BATCH = 1000  # texts tokenised at a time


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Token ids [T] of one row, special tokens included, and which of them are answers [T] (bool)."""

    ids: np.ndarray
    answer: np.ndarray


def surrounding(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text: at most one before."""
    around = tokenizer("", add_special_tokens=True)["input_ids"]
    return around[:1], around[1:]


def encode_rows(tokenizer: Any, rows: Sequence[Row], max_tokens: int) -> list[TokenRow]:
    """Tokenise the world's rows, one each; tokens that overlap an answer's span are marked.

    A row of more than ``max_tokens``, special tokens included, loses the end of its text.
    """
    before, after = surrounding(tokenizer)
    room = max_tokens - len(before) - len(after)
    out = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        texts = [row.text for row in part]
        batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for row, ids, offsets in zip(part, batch["input_ids"], batch["offset_mapping"], strict=True):
            span = np.asarray(offsets).reshape(-1, 2)[:room]
            inside = np.zeros(len(span), dtype=bool)
            for first, last in row.answers:
                inside |= (span[:, 1] > first) & (span[:, 0] < last) & (span[:, 1] > span[:, 0])
            answer = np.concatenate([np.zeros(len(before), bool), inside, np.zeros(len(after), bool)])
            out.append(TokenRow(np.asarray([*before, *ids[:room], *after], dtype=np.int32), answer))
    return out


def read_documents(path: Path) -> list[str]:
    """Documents of a plain-text file (``.xz`` too), separated by a line ``<|endoftext|>`` or by blank lines.

    Raises:
        ArtifactError: the file is missing, damaged or not UTF-8.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8-sig")
    except OSError as error:
        raise ArtifactError(f"zoo.pretrain.corpus: {path}: {error.strerror}") from None
    except (UnicodeDecodeError, lzma.LZMAError) as error:
        raise ArtifactError(f"zoo.pretrain.corpus: {path}: not readable as text ({error})") from None
    marked = re.split(rf"^\s*{re.escape(DOCUMENT_END)}\s*$", text, flags=re.MULTILINE)
    parts = marked if len(marked) > 1 else re.split(r"\n\s*\n", text)
    return [part.strip() for part in parts if part.strip()]


def encode_documents(tokenizer: Any, documents: Sequence[str], max_tokens: int) -> list[TokenRow]:
    """Cut documents, one after the other, into rows of exactly ``max_tokens``, special tokens included.

    Every row gets the tokenizer's own special tokens around it; an end-of-text token (or the separator) stands
    between two documents. A remainder shorter than a row is dropped.

    Raises:
        ArtifactError: the text gives less than one row.
    """
    before, after = surrounding(tokenizer)
    between = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    room = max_tokens - len(before) - len(after)
    parts = []
    for start in range(0, len(documents), BATCH):
        batch = tokenizer(list(documents[start : start + BATCH]), add_special_tokens=False, verbose=False)
        parts += [np.asarray([*ids, between], dtype=np.int32) for ids in batch["input_ids"]]
    stream = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    count = len(stream) // room
    if count == 0:
        raise ArtifactError(f"zoo.pretrain.corpus: {len(stream)} tokens, less than one row of {max_tokens}")
    block = np.empty((count, max_tokens), dtype=np.int32)
    block[:, : len(before)] = before
    block[:, len(before) : len(before) + room] = stream[: count * room].reshape(count, room)
    block[:, len(before) + room :] = after
    nothing = np.zeros(max_tokens, dtype=bool)
    return [TokenRow(ids, nothing) for ids in block]
