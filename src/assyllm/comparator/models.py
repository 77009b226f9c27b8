"""Two transformers models and a list of texts in, a table of layer against layer out (the paper's Block Comparator).

Rows of CKA are examples: the mean state of a text's tokens after a layer, special tokens (BOS, CLS, SEP) and
padding left out, so that models of unlike widths, families and tokenizers can be compared. A layer's activation
distribution for COR is counted over the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assyllm.artifacts import ArtifactError, write_json
from assyllm.comparator.cka import MINIMUM_ROWS, Estimator, all_pairs, column_scale, pair_terms, varies
from assyllm.comparator.compatibility import compatibility
from assyllm.comparator.cor import cor, counts
from assyllm.zoo.encoding import pad_id, prefix_and_suffix
from assyllm.zoo.load import fetch, load_model, load_tokenizer, positions

Source = str | Path | tuple[Any, Any]  # a folder, a hub id (``id`` or ``id@revision``), or (model, tokenizer)
Score = float | None
Scores = tuple[tuple[Score, ...], ...]  # [layers of A][layers of B], None = no score
CHUNK_TEXTS = 16  # of one forward pass


@dataclass(frozen=True)
class Comparison:
    """Scores of every layer of model A (rows) against every layer of model B (columns).

    Layer 0 is the embedding, layer l what the l-th layer gives; the last is after the final norm where the family
    has one. None means no score: fewer than four texts, or states that do not vary or are not finite.
    """

    a: str
    b: str
    texts: int
    shortened: int  # of them that lost their end in one of the models
    weight: float
    cka: Scores
    cor: Scores
    compatibility: Scores

    def rows(self) -> list[dict[str, Any]]:
        """One dict a pair of layers: layer_a, layer_b, cka, cor, compatibility."""
        return [
            {"layer_a": i, "layer_b": j, "cka": cka, "cor": self.cor[i][j], "compatibility": self.compatibility[i][j]}
            for i, row in enumerate(self.cka)
            for j, cka in enumerate(row)
        ]

    def __str__(self) -> str:
        """The compatibilities as a table of text, ``-`` where there is no score."""
        widths = range(len(self.compatibility[0]))
        cut = f", {self.shortened} of them shortened" if self.shortened else ""
        lines = [f"compatibility of {self.a} (rows) and {self.b} (columns), {self.texts} texts{cut}"]
        lines.append("layer " + "".join(f"{j:7d}" for j in widths))
        for i, row in enumerate(self.compatibility):
            lines.append(f"{i:5d} " + "".join(f"{'-':>7}" if s is None else f"{s:7.3f}" for s in row))
        return "\n".join(lines)

    def heatmap(self, path: str | Path) -> Path:
        """Draw the three scores as heatmaps (PNG, PDF or SVG by the file's ending)."""
        from assyllm.comparator.heatmap import draw

        return draw(self, Path(path))

    def write(self, path: str | Path) -> Path:
        """Write everything as JSON, null where there is no score."""
        keys = ("a", "b", "texts", "shortened", "weight", "cka", "cor", "compatibility")
        write_json(Path(path), {key: getattr(self, key) for key in keys})
        return Path(path)


def compare(
    model_a: Source,
    model_b: Source,
    texts: Sequence[str],
    *,
    max_tokens: int = 256,
    cka_weight: float = 0.5,
    cka_batch: int = 1024,
    estimator: Estimator = "unbiased",
    histogram_bins: int = 32,
    bf16: bool = False,
) -> Comparison:
    """Compare two models on texts.

    Args:
        model_a, model_b: a transformers folder, a hub id (``id@revision`` pins it), or ``(model, tokenizer)``.
        texts: at least four, and rather some hundreds: CKA of few texts scatters. Those in which one of the tokenizers
            finds no token are left out.
        max_tokens: longer texts lose their end, in both models at as many tokens: fewer where one has fewer positions.
        cka_weight: w in compatibility = w CKA + (1 - w) COR.
        cka_batch: texts of a minibatch of CKA (the paper's 32 scatters more than one batch of all).
        bf16: multiply states in bfloat16.

    Raises:
        ArtifactError: a model cannot be loaded, an argument is out of range, or there are fewer than four texts with
            words in them.
    """
    if isinstance(texts, str):
        raise ArtifactError("texts: a list of texts is expected, not one text")
    if not 0 <= cka_weight <= 1:
        raise ArtifactError(f"cka_weight: {cka_weight} is not between 0 and 1")
    if cka_batch < MINIMUM_ROWS:
        raise ArtifactError(f"cka_batch: {cka_batch}, at least {MINIMUM_ROWS} is expected")
    if histogram_bins < 2:
        raise ArtifactError(f"histogram_bins: {histogram_bins}, at least 2 are expected")
    opened = [_open(source) for source in (model_a, model_b)]
    texts = _read_by_both([text for text in texts if text.strip()], [tokenizer for _, _, tokenizer in opened])
    max_tokens = min(max_tokens, *(positions(model.config) for _, model, _ in opened))
    if len(texts) < MINIMUM_ROWS:
        raise ArtifactError(f"{len(texts)} texts: a comparison needs at least {MINIMUM_ROWS}, rather some hundreds")
    names, layers, histograms, shortened = [], [], [], set[int]()
    for name, model, tokenizer in opened:
        pooled, counted, cut = _states(name, model, tokenizer, texts, max_tokens, histogram_bins)
        shortened |= cut
        names.append(name)
        layers.append([states * column_scale(states) for states in pooled])
        histograms.append(counted)
    (left, right), split = histograms, len(layers[0])
    hsic = all_pairs([*layers[0], *layers[1]], min(cka_batch, len(texts)), estimator, bf16)
    first, second = ([varies(states) for states in side] for side in layers)
    ckas, cors, both = [], [], []
    for i in range(split):
        terms = [pair_terms(hsic, i, split + j) for j in range(len(right))]
        ckas.append(
            tuple(
                float(t.cka()) if bool(t.scored()) and first[i] and varies else None
                for t, varies in zip(terms, second, strict=True)
            )
        )
        cors.append(tuple(_cor(left[i], q) for q in right))
        both.append(tuple(_both(c, r, cka_weight) for c, r in zip(ckas[-1], cors[-1], strict=True)))
    return Comparison(names[0], names[1], len(texts), len(shortened), cka_weight, tuple(ckas), tuple(cors), tuple(both))


def _read_by_both(texts: Sequence[str], tokenizers: Sequence[Any]) -> list[str]:
    """The texts in which each tokenizer finds a token: some leave nothing of a zero-width space."""
    found = [t(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else [] for t in tokenizers]
    return [text for text, *rows in zip(texts, *found, strict=True) if all(rows)]


def _cor(p: np.ndarray, q: np.ndarray) -> Score:
    return cor(p[None], q[None]) if p.any() and q.any() else None


def _both(cka: Score, cor: Score, weight: float) -> Score:
    return cka if weight == 1 else None if cor is None else compatibility(cka, cor, weight)


def _open(source: Source) -> tuple[str, Any, Any]:
    """Name, model and tokenizer."""
    if isinstance(source, tuple):
        model, tokenizer = source
        return str(model.config.name_or_path or type(model).__name__), model.eval(), tokenizer
    folder = Path(source)
    if not folder.is_dir():
        if isinstance(source, Path) or str(source).startswith((".", "/", "~")):
            raise ArtifactError(f"{source}: no such folder")
        hub_id, _, revision = str(source).partition("@")
        try:
            folder = fetch(hub_id, revision or "main")
        except ArtifactError as error:
            raise ArtifactError(f"{source}: no such folder, and from the hub: {error}") from None
    return str(source), load_model(folder, headless=True), load_tokenizer(folder)


@torch.no_grad()
def _states(
    name: str, model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int, bins: int
) -> tuple[list[Tensor], list[np.ndarray], set[int]]:
    """Per layer pooled states ``[n, d]`` and the histogram ``[bins]`` of its values over root mean square.

    And which texts were shortened.
    """
    prefix, suffix = prefix_and_suffix(tokenizer)
    room = max_tokens - len(prefix) - len(suffix)
    if room < 1:
        raise ArtifactError(
            f"max_tokens {max_tokens}: none is left beside the {len(prefix) + len(suffix)} of a model's own"
        )
    whole = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    ids, cut = [found[:room] for found in whole], {i for i, found in enumerate(whole) if len(found) > room}
    rows, largest = model.get_input_embeddings().num_embeddings, max(max(found) for found in whole)
    if largest >= rows:
        raise ArtifactError(f"{name}: its tokenizer gives token {largest}, the model has {rows}")
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    pooled: list[Tensor] = []
    tokens: list[list[Tensor]] = []
    device = next(model.parameters()).device
    for start in range(0, len(order), CHUNK_TEXTS):
        chosen = order[start : start + CHUNK_TEXTS]
        longest = max(len(ids[i]) for i in chosen) + len(prefix) + len(suffix)
        rows = torch.full((len(chosen), longest), pad_id(tokenizer))
        mask = torch.zeros(len(chosen), longest, dtype=torch.bool)
        own = torch.zeros(len(chosen), longest)
        for r, i in enumerate(chosen):
            row = [*prefix, *ids[i], *suffix]
            rows[r, : len(row)] = torch.tensor(row)
            mask[r, : len(row)] = True
            own[r, len(prefix) : len(prefix) + len(ids[i])] = 1
        found = model(input_ids=rows.to(device), attention_mask=mask.long().to(device), output_hidden_states=True)
        hidden = [states.float().cpu() for states in found.hidden_states]
        weights = own / own.sum(-1, keepdim=True).clamp(min=1)
        if not pooled:
            pooled = [torch.zeros(len(texts), states.shape[-1]) for states in hidden]
            tokens = [[] for _ in hidden]
        for layer, states in enumerate(hidden):
            pooled[layer][chosen] = (weights[:, None] @ states)[:, 0]
            tokens[layer].append(states[own.bool()])
    return pooled, [_histogram(torch.cat(parts), bins) for parts in tokens], cut


def _histogram(values: Tensor, bins: int) -> np.ndarray:
    """Counts ``[bins]`` of a layer's values; all zero where they are not finite."""
    rms = float(values.double().pow(2).mean().sqrt())
    if not np.isfinite(rms) or rms == 0:
        return np.zeros(bins, dtype=np.int64)
    return counts(values, rms, bins, torch.zeros(len(values), dtype=torch.int64), 1)[0]
