"""Two transformers models and a list of texts in, a table of layer against layer out (the paper's Block Comparator).

Rows of CKA are examples: the mean state of a text's tokens after a layer, special tokens (BOS, CLS, SEP) and
padding left out, so that models of unlike widths, families and tokenizers can be compared. A layer's activation
distribution for COR is counted over the same tokens.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from assyllm.artifacts import ArtifactError, write_json
from assyllm.comparator.cka import MINIMUM_ROWS, Estimator, all_pairs, column_scale, pair_terms, varies
from assyllm.comparator.compatibility import compatibility
from assyllm.comparator.cor import Spread, cor
from assyllm.hub.fetch import fetch_safetensors
from assyllm.zoo.device import device_of
from assyllm.zoo.encoding import pad_id, prefix_and_suffix
from assyllm.zoo.load import load_config, load_model, load_tokenizer, positions, weight_files

Source = str | Path | tuple[Any, Any]  # a folder, a hub id (``id`` or ``id@revision``), or (model, tokenizer)
Dtype = Literal["float32", "bfloat16", "float16"]
Score = float | None
Scores = tuple[tuple[Score, ...], ...]  # [layers of A][layers of B], None = no score
CHUNK_TEXTS = 16  # of one forward pass


@dataclass(frozen=True)
class Comparison:
    """Scores of every layer of model A (rows) against every layer of model B (columns).

    Layer 0 is the embedding, layer l what the l-th layer gives; the last is after the final norm where the family
    has one. None means no score: states that do not vary or are not finite.
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
    device: str = "cpu",
    dtype: Dtype = "float32",
) -> Comparison:
    """Compare two models on texts.

    Of folders and hub ids one model is in memory at a time, and beside it a pooled state a text and layer: more tokens
    need no more memory.

    Args:
        model_a, model_b: a transformers folder, a hub id (``id@revision`` pins it), or ``(model, tokenizer)``.
        texts: at least four, and rather some hundreds: CKA of few texts scatters. Those in which one of the tokenizers
            finds no token are left out.
        max_tokens: longer texts lose their end, in both models at as many tokens: fewer where one has fewer positions.
        cka_weight: w in compatibility = w CKA + (1 - w) COR.
        cka_batch: texts of a minibatch of CKA (the paper's 32 scatters more than one batch of all).
        bf16: multiply states in bfloat16.
        device: where the models compute, as torch names it; ``dtype``: of their weights. A model that is given as such
            stays where and what it is.

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
    if dtype not in get_args(Dtype):
        raise ArtifactError(f"dtype: {dtype!r} is none of {', '.join(get_args(Dtype))}")
    if estimator not in get_args(Estimator):
        raise ArtifactError(f"estimator: {estimator!r} is none of {', '.join(get_args(Estimator))}")
    sides = [_open(source, device_of(device), dtype) for source in (model_a, model_b)]
    rows = _read_by_both([text for text in texts if text.strip()], [side.tokenizer for side in sides])
    max_tokens = min(max_tokens, *(positions(side.config) for side in sides))
    count = len(rows[0])
    if count < MINIMUM_ROWS:
        raise ArtifactError(f"{count} texts: a comparison needs at least {MINIMUM_ROWS}, rather some hundreds")
    layers, histograms, shortened = [], [], set[int]()
    rooms = [side.room(max_tokens) for side in sides]
    for side, ids, room in zip(sides, rows, rooms, strict=True):
        shortened |= {i for i, found in enumerate(ids) if len(found) > room}
        pooled, spreads = _states(side, [found[:room] for found in ids])
        gc.collect()  # a model can be in a cycle, and would lie beside the next
        layers.append([states * column_scale(states) for states in pooled])
        histograms.append([spread.histogram(histogram_bins) for spread in spreads])
    (left, right), split = histograms, len(layers[0])
    hsic = all_pairs([*layers[0], *layers[1]], min(cka_batch, count), estimator, bf16)
    first, second = ([varies(states) for states in side] for side in layers)
    ckas, cors, both = [], [], []
    for i in range(split):
        terms = [pair_terms(hsic, i, split + j) for j in range(len(right))]
        ckas.append(
            tuple(
                float(t.cka()) if bool(t.scored()) and first[i] and other else None
                for t, other in zip(terms, second, strict=True)
            )
        )
        cors.append(tuple(_cor(left[i], q) for q in right))
        both.append(tuple(_both(c, r, cka_weight) for c, r in zip(ckas[-1], cors[-1], strict=True)))
    a, b = (side.name for side in sides)
    return Comparison(a, b, count, len(shortened), cka_weight, tuple(ckas), tuple(cors), tuple(both))


def _read_by_both(texts: Sequence[str], tokenizers: Sequence[Any]) -> list[list[list[int]]]:
    """By tokenizer the tokens of the texts in which each finds one: some leave nothing of a zero-width space."""
    found = [t(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else [] for t in tokenizers]
    kept = [rows for rows in zip(*found, strict=True) if all(rows)]
    return [[rows[side] for rows in kept] for side in range(len(tokenizers))]


def _cor(p: np.ndarray, q: np.ndarray) -> Score:
    return cor(p[None], q[None]) if p.any() and q.any() else None


def _both(cka: Score, cor: Score, weight: float) -> Score:
    return cka if weight == 1 else None if cor is None else compatibility(cka, cor, weight)


@dataclass(frozen=True)
class _Side:
    """One of the two: what is read of it at once, and how to get its model."""

    name: str
    config: Any
    tokenizer: Any
    model: Callable[[], Any]

    def room(self, max_tokens: int) -> int:
        """How many tokens of a text stand beside the model's own.

        Raises:
            ArtifactError: none.
        """
        own = sum(map(len, prefix_and_suffix(self.tokenizer)))
        if max_tokens <= own:
            raise ArtifactError(f"max_tokens {max_tokens}: none is left beside the {own} of a model's own")
        return max_tokens - own


def _open(source: Source, device: torch.device, dtype: Dtype) -> _Side:
    if not isinstance(source, str | Path):
        if not isinstance(source, tuple | list) or len(source) != 2 or not callable(source[1]):
            raise ArtifactError(f"{type(source).__name__}: a folder, a hub id or (model, tokenizer) is expected")
        model, tokenizer = source
        name = str(model.config.name_or_path or type(model).__name__)
        return _Side(name, model.config, tokenizer, lambda: model)
    folder = Path(source)
    if not folder.is_dir():
        if isinstance(source, Path) or str(source).startswith((".", "/", "~")):
            raise ArtifactError(f"{source}: no such folder")
        hub_id, _, revision = str(source).partition("@")
        try:
            folder = fetch_safetensors(hub_id, revision or "main")
        except ArtifactError as error:
            raise ArtifactError(f"{source}: no such folder, and from the hub: {error}") from None
    weight_files(folder)

    def loaded() -> Any:
        model = load_model(folder, getattr(torch, dtype), headless=True)
        return model.base_model.to(device)  # the language head is not needed

    return _Side(str(source), load_config(folder), load_tokenizer(folder), loaded)


@contextmanager
def _evaluating(model: Any) -> Iterator[Any]:
    """A model in eval mode, whose modules train afterwards where they did before."""
    training = [module for module in model.modules() if module.training]
    try:
        yield model.eval()
    finally:
        for module in training:
            module.training = True


def _states(side: _Side, ids: Sequence[list[int]]) -> tuple[list[Tensor], list[Spread]]:
    """Per layer pooled states ``[n, d]`` and the spread of its values, of texts by their tokens."""
    with torch.no_grad(), _evaluating(side.model()) as model:
        return _read(model, side, ids)


def _read(model: Any, side: _Side, ids: Sequence[list[int]]) -> tuple[list[Tensor], list[Spread]]:
    prefix, suffix = prefix_and_suffix(side.tokenizer)
    known, largest = model.get_input_embeddings().num_embeddings, max(map(max, [*ids, [*prefix, *suffix, 0]]))
    if largest >= known:
        raise ArtifactError(f"{side.name}: its tokenizer gives token {largest}, the model has {known}")
    padding = pad_id(side.tokenizer)
    padding = padding if padding < known else 0  # masked, so any row does
    uncached = {"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}  # no next token
    device = next(model.parameters()).device
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    pooled: list[Tensor] = []
    spreads: list[Spread] = []
    for start in _shown(range(0, len(order), CHUNK_TEXTS), side.name):
        chosen = order[start : start + CHUNK_TEXTS]
        longest = max(len(ids[i]) for i in chosen) + len(prefix) + len(suffix)
        rows = torch.full((len(chosen), longest), padding)
        mask = torch.zeros(len(chosen), longest, dtype=torch.long)
        own = torch.zeros(len(chosen), longest)
        for r, i in enumerate(chosen):
            row = [*prefix, *ids[i], *suffix]
            rows[r, : len(row)] = torch.tensor(row)
            mask[r, : len(row)] = 1
            own[r, len(prefix) : len(prefix) + len(ids[i])] = 1
        own = own.to(device)
        asked = {"input_ids": rows.to(device), "attention_mask": mask.to(device), **uncached}
        found = model(**asked, output_hidden_states=True)
        weights = own / own.sum(-1, keepdim=True)
        if not pooled:
            pooled = [torch.zeros(len(ids), states.shape[-1]) for states in found.hidden_states]
            spreads = [Spread(states.device) for states in found.hidden_states]
        for layer, states in enumerate(found.hidden_states):
            mine = weights.to(states.device)  # a model may lie on several
            pooled[layer][chosen] = (mine[:, None] @ states.float())[:, 0].cpu()
            spreads[layer].add(states[mine > 0])
    return pooled, spreads


def _shown(steps: range, name: str) -> Iterable[int]:
    """The steps, with a bar on a terminal."""
    if not sys.stderr.isatty():
        return steps
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    return track(steps, escape(name), console=Console(stderr=True), transient=True)
