"""Looking inside: layers of two models in one plane, layers of an assembled chain against a block's own model.

Everything is read off the server's public text, with adapters in closed form fitted to it, so that any finished chain
of a run can be built again from its block ids alone. Rows are the examples that the comparator compares: pooled states
of (line, continuation). Two tables come out, one a figure (paper figures 9 and 10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assyllm import params, seeding
from assyllm.adapter.base import Adapter
from assyllm.adapter.linear import LinearSums
from assyllm.adapter.reading import Readings, readings
from assyllm.artifacts import ArtifactError
from assyllm.assembly.walk import Walker, edge
from assyllm.blocks.block import Block
from assyllm.blocks.pool import Pool
from assyllm.comparator.activations import Native, Rows, native, pooled
from assyllm.comparator.cka import cka, column_scale
from assyllm.comparator.compatibility import compatibility
from assyllm.comparator.cor import cor
from assyllm.tasks.record import Question
from assyllm.zoo.encoding import Encoded, combine, encode

PLANE_DIMS = 30  # of the shared PCA before t-SNE
POINTS = ("what", "pair", "space", "model", "layer", "other", "example", "x", "y", "value", "source")
SCORES = ("what", "world", "task", "seed", "model", "candidate", "shown", "row", "column", "cka", "cor",
          "compatibility", "reported_compatibility", "trained_joins", "accuracy", "source")  # fmt: skip


@dataclass
class PublicRun:
    """The pool's models on public questions: their readings, pooled states, histograms and scales."""

    pool: Pool
    readings: Readings
    native: dict[str, Native]  # by model
    comparator: params.Comparator

    @classmethod
    def read(
        cls, pool: Pool, questions: Sequence[Question], max_tokens: int, comparator: params.Comparator
    ) -> PublicRun:
        """Run every model of the pool over the questions once."""
        encoded: dict[str, Encoded] = {}
        for model in pool.models:
            name = pool.reads_as(model)
            if name not in encoded:
                encoded[name] = encode(pool.tokenizer(name), questions, max_tokens)
        found = {
            model: native(pool, model, encoded[pool.reads_as(model)], bins=comparator.histogram_bins)
            for model in pool.models
        }
        return cls(pool, readings(pool, lambda m: encoded[pool.reads_as(m)]), found, comparator)

    def states(self, block: str) -> Tensor:
        """Pooled states ``[N, C, P, d]`` of a block in its own model."""
        return self.native[self.pool.info(block).model].pooled[block]

    def cor(self, block: str, candidate: str) -> float:
        """COR of two blocks in their own models."""
        first, second = (self.native[self.pool.info(b).model].histograms[b][0] for b in (block, candidate))
        return cor(first, second)

    def cka(self, x: Tensor, y: Tensor) -> float | None:
        """CKA of pooled states ``[N, C, P, d]`` and ``[N, C, P, e]``, outlier columns held down."""
        flat = [combine(states).flatten(0, 1) for states in (x, y)]
        left, right = (states * column_scale(states) for states in flat)
        return cka(left, right, self.comparator.cka_batch, self.comparator.estimator)

    def layers(self, model: str) -> list[Tensor]:
        """Pooled states ``[N, C, P, d]`` after every layer of a model."""
        rows, states, found = self.readings.rows(model), None, []
        for info in self.pool.of_model(model):
            after, states = layers_of(self.pool.block(info.id), states, rows)
            found += after
        return found


@torch.no_grad()
def layers_of(block: Block, states: Sequence[Tensor] | None, rows: Rows) -> tuple[list[Tensor], list[Tensor]]:
    """Pooled states after every layer of a block, and the per-chunk states after its last (``None``: the ids enter)."""
    inputs = [chunk.ids for chunk in rows.chunks] if states is None else states
    traces = block.traces([(hidden, chunk.mask) for hidden, chunk in zip(inputs, rows.chunks, strict=True)])
    after = [pooled([trace[layer] for trace in traces], rows) for layer in range(len(block.stack))]
    return after, [trace[-1] for trace in traces]


class Chains:
    """Finished chains of a run, built again with linear adapters fitted to public text, and what they score."""

    def __init__(self, public: PublicRun, ridge: float) -> None:
        self._public, self._ridge = public, ridge
        self._joined: dict[str, Adapter | None] = {}
        self._walker = Walker(public.pool, public.readings, self._joined)

    def _join(self, chain: Sequence[str]) -> None:
        """Fit the adapters of a chain, first to last; None where a block follows its own model's block before it."""
        pool = self._public.pool
        for i in range(1, len(chain)):
            name, before = edge(chain[:i], chain[i]), pool.before(chain[i])
            if name in self._joined:
                continue
            if before is None or before == chain[i - 1]:  # a start block reads the text itself
                self._joined[name] = None
                continue
            arriving, received = self._walker.vectors(chain[:i]), self._public.states(before)
            self._joined[name] = LinearSums.of(arriving.flatten(0, 2), received.flatten(0, 2)).fit(self._ridge)

    def scores(self, chain: Sequence[str]) -> tuple[float, float, float]:
        """CKA, COR and compatibility of a chain's joins, their means (paper section 3.2); NaN without one."""
        self._join(chain)
        weight = self._public.comparator.cka_weight
        found = []
        for i in range(1, len(chain)):
            alike = self._public.cka(self._walker.vectors(chain[: i + 1]), self._public.states(chain[i]))
            near = self._public.cor(chain[i - 1], chain[i])
            both = compatibility(alike, near, weight)
            found.append([np.nan if score is None else score for score in (alike, near, both)])
        alike, near, both = np.array(found).mean(0) if found else (np.nan,) * 3
        return float(alike), float(near), float(both)

    def layers(self, chain: Sequence[str]) -> list[Tensor]:
        """Pooled states ``[N, C, P, d]`` after every layer of a chain, in the tokens of its first block."""
        self._join(chain)
        pool, found = self._public.pool, []
        rows = self._public.readings.rows(pool.info(chain[0]).model)
        states: Sequence[Tensor] | None = None
        for i, block in enumerate(chain):
            if pool.info(block).kind == "start":
                rows, states = self._public.readings.rows(pool.info(block).model), None
            adapter = self._joined[edge(chain[:i], block)] if i else None
            with torch.no_grad():
                entered = [adapter(hidden) for hidden in states] if adapter is not None and states else states
            after, states = layers_of(pool.block(block), entered, rows)
            found += after
        return found


def heatmap(public: PublicRun, chains: Chains, chain: Sequence[str]) -> list[list[float | None]]:
    """CKA of the chain's layers (rows) with the layers of its last block's own model (columns)."""
    own = public.layers(public.pool.info(chain[-1]).model)
    return [[public.cka(x, y) for y in own] for x in chains.layers(chain)]


def chosen(models: Sequence[Mapping[str, str]], count: int) -> list[str]:
    """Of a task's finished models, ``count`` to draw: the best by compatibility for each last block, evenly spread."""
    ranked = sorted(models, key=lambda m: (-float(m["compatibility"]), m["blocks"]))
    firsts = list({m["blocks"].split()[-1]: m["blocks"] for m in reversed(ranked)}.values())[::-1]
    firsts.sort(key=[m["blocks"] for m in ranked].index)
    places = np.linspace(0, len(firsts) - 1, min(count, len(firsts))).round().astype(int)
    return [firsts[place] for place in places]


def score_rows(
    public: PublicRun, models: Sequence[Mapping[str, str]], settings: params.Features, ridge: float, draw: bool
) -> list[dict[str, Any]]:
    """The rows of ``compatibility_heatmaps.csv`` for one task: every finished model, and the cells of some.

    Args:
        models: the run's ``models.csv`` rows of this task.
        ridge: penalty of the adapters.
        draw: whether some get a heatmap.
    """
    chains, rows = Chains(public, ridge), []
    shown = chosen(models, settings.candidates) if draw else []
    for model in models:
        blocks = model["blocks"].split()
        alike, near, both = chains.scores(blocks)
        common = dict.fromkeys(SCORES, "") | {
            "what": "model", "task": model["task"], "seed": model["seed"], "model": model["blocks"],
            "candidate": blocks[-1], "shown": shown.index(model["blocks"]) + 1 if model["blocks"] in shown else "",
            "source": "measured",
        }  # fmt: skip
        if not np.isfinite([alike, near, both]).all():
            continue
        rows.append(
            common | {"cka": round(alike, 6), "cor": round(near, 6), "compatibility": round(both, 6),
                      "reported_compatibility": model["compatibility"], "trained_joins": model["trained_joins"],
                      "accuracy": model["accuracy_test"]}
        )  # fmt: skip
        if common["shown"]:
            for i, line in enumerate(heatmap(public, chains, blocks)):
                rows += [
                    common | {"what": "cell", "row": i + 1, "column": j + 1, "cka": round(value, 6)}
                    for j, value in enumerate(line) if value is not None
                ]  # fmt: skip
    return rows


def standardised(states: Tensor) -> np.ndarray:
    """Features ``[n, F]`` of one layer, every column of mean 0 and deviation 1 (0 where it does not vary)."""
    values = states.double().numpy()
    spread = values.std(0)
    return (values - values.mean(0)) / np.where(spread > 0, spread, 1)


def spaces(layers: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Two spaces that layers of unlike widths share, one row for each layer and example.

    ``columns``: standardised columns side by side from the first on, the narrower model filled with zeros. Columns of
    two models do not correspond, so they part by themselves. ``cosines``: an example's cosines with all examples in
    the same layer (Moschella 2023), the rows of the Gram matrices that CKA compares.
    """
    widest = max(values.shape[1] for values in layers)
    columns = [np.pad(values, ((0, 0), (0, widest - values.shape[1]))) for values in layers]
    unit = [values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12) for values in layers]
    return {"columns": np.concatenate(columns), "cosines": np.concatenate([values @ values.T for values in unit])}


def plane(points: np.ndarray, perplexity: float) -> np.ndarray:
    """Points ``[n, F]`` in a plane ``[n, 2]``: a shared PCA, then t-SNE (exact, started from the PCA: no chance)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    reduced = PCA(min(PLANE_DIMS, *points.shape), svd_solver="full").fit_transform(points)
    seed = seeding.seed_for("plane") % 2**32
    tsne = TSNE(method="exact", init="pca", perplexity=perplexity, max_iter=500, random_state=seed, n_jobs=1)
    return tsne.fit_transform(reduced)


def point_rows(public: PublicRun, settings: params.Features) -> list[dict[str, Any]]:
    """The rows of ``feature_differences.csv``: for each pair of models, points in both spaces and CKA of all layers."""
    rows: list[dict[str, Any]] = []
    for pair in settings.pairs:
        layers = [(model, i + 1, states) for model in pair for i, states in enumerate(public.layers(model))]
        common = dict.fromkeys(POINTS, "") | {"pair": " ".join(pair), "source": "measured"}
        for model, layer, states in layers:
            for other, place, theirs in layers:
                if (model, other) == tuple(pair) and (score := public.cka(states, theirs)) is not None:
                    made = {"what": "cka", "model": model, "layer": layer, "other": place, "value": round(score, 6)}
                    rows.append(common | made)
        values = [standardised(combine(states)[: settings.points, 0]) for *_, states in layers]
        if settings.perplexity >= (count := len(layers) * len(values[0])):
            raise ArtifactError(f"features.perplexity: {settings.perplexity:g} is too much for {count} points")
        for space, points in spaces(values).items():
            places = plane(points, settings.perplexity)
            for i, (model, layer, _) in enumerate(layers):
                rows += [
                    common | {"what": "point", "space": space, "model": model, "layer": layer, "example": n,
                              "x": round(float(x), 3), "y": round(float(y), 3)}
                    for n, (x, y) in enumerate(places[i * len(values[0]) : (i + 1) * len(values[0])])
                ]  # fmt: skip
    return rows
