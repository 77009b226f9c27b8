"""Tokenizers trained on a corpus, each of the kind that its family's real models use.

Llama: byte-pair encoding with "▁" for spaces; OPT, RoBERTa: byte-level byte-pair encoding; BERT: uncased
WordPiece. So no two families cut a text alike. The same texts always give the same bytes; the library's own
WordPiece trainer does not (its ids follow the order of a randomly seeded hash map), and neither does its limit
on the alphabet, so both are done here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

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
CONTINUES = "##"  # WordPiece's mark of a piece that does not begin a word
SHIFT, LARGEST = 0xF0000, 0x1FFFD  # a continuing character is trained as one of Unicode's private ones


def train(
    family: Family, texts: Sequence[str], size: int, max_tokens: int, whole: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Train a family's tokenizer.

    Args:
        texts: the corpus.
        size: entries of the vocabulary, special tokens and ``whole`` included. A corpus with few distinct words
            may give fewer.
        max_tokens: longest row of the model, special tokens included.
        whole: words that stay single tokens whatever the corpus (matched as whole words).
    """
    tokenizer = TRAINERS[family.algorithm](family, texts, size - len(set(whole)))
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


def _train_bpe(family: Family, texts: Sequence[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=family.roles["unk"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=_specials(family), show_progress=False)
    tokenizer.train_from_iterator(_without_rare(texts), trainer)
    return tokenizer


def _train_byte_bpe(family: Family, texts: Sequence[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=_specials(family),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_wordpiece(family: Family, texts: Sequence[str], size: int) -> Tokenizer:
    """WordPiece by byte-pair merges: continuing characters are shifted out of the way, and back afterwards."""
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()

    @cache
    def shifted(word: str) -> str:
        return "" if ord(max(word)) > LARGEST else word[0] + "".join(chr(ord(c) + SHIFT) for c in word[1:])

    plain = _without_rare([normalizer.normalize_str(text) for text in texts])
    words = (" ".join(shifted(word) for word, _ in splitter.pre_tokenize_str(text)) for text in plain)
    merges = Tokenizer(models.BPE())
    merges.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    merges.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=size, special_tokens=_specials(family), show_progress=False)
    )
    pieces = sorted(merges.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    vocabulary = {_unshifted(piece): number for number, (piece, _) in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=family.roles["unk"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(_specials(family))
    return tokenizer


def _unshifted(piece: str) -> str:
    mark = CONTINUES if ord(piece[0]) >= SHIFT else ""
    return mark + "".join(chr(ord(c) - SHIFT) if ord(c) >= SHIFT else c for c in piece)


def _without_rare(texts: Sequence[str]) -> Iterator[str]:
    """The texts without all but their :data:`ALPHABET_LIMIT` commonest characters (by code point at a tie)."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    rare = sorted(counts, key=lambda character: (-counts[character], character))[ALPHABET_LIMIT:]
    table = dict.fromkeys(map(ord, rare))
    return (text.translate(table) if table else text for text in texts)


TRAINERS = {"bpe": _train_bpe, "byte_bpe": _train_byte_bpe, "wordpiece": _train_wordpiece}
