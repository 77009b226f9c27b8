"""Tokenizers trained on a corpus, each of the kind that its family's real models use.

Llama: byte-pair encoding with "▁" for spaces; OPT, RoBERTa: byte-level byte-pair encoding; BERT: uncased
WordPiece. So no two families cut a text alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from assyllm.zoo.families import Family

ALPHABET_LIMIT = 500  # characters that non-byte vocabularies keep; rarer ones become the unknown token


def train(
    family: Family, texts: Iterable[str], size: int, max_tokens: int, whole: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Train a family's tokenizer.

    Args:
        texts: the corpus.
        size: entries of the vocabulary, special tokens and ``whole`` included. A corpus with few distinct words
            may give fewer.
        max_tokens: longest row of the model, special tokens included.
        whole: words that stay single tokens whatever the corpus (matched as whole words).
    """
    tokenizer, trainer = _untrained(family, size - len(set(whole)))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(word, single_word=True, lstrip=True) for word in whole])
    added = dict(zip(family.specials, _specials(family), strict=True))
    surround = {token for token in family.template.split() if token != "$A"}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=family.template,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in sorted(surround)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        padding_side="right",
        **{f"{role}_token": added[token] for role, token in family.roles.items()},
    )


def _specials(family: Family) -> list[AddedToken]:
    """Special tokens; the mask takes the space before it, or an encoder would see a stray space there."""
    mask = family.roles.get("mask")
    return [AddedToken(t, lstrip=t == mask, special=True, normalized=False) for t in family.specials]


def _untrained(family: Family, size: int) -> tuple[Tokenizer, Any]:
    common: dict[str, Any] = {"special_tokens": _specials(family), "show_progress": False}
    unknown = family.roles["unk"]
    if family.algorithm == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer, trainers.WordPieceTrainer(vocab_size=size, limit_alphabet=ALPHABET_LIMIT, **common)
    if family.algorithm == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token=unknown))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        return tokenizer, trainers.BpeTrainer(vocab_size=size, limit_alphabet=ALPHABET_LIMIT, **common)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, **common)
