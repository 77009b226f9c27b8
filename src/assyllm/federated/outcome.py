"""From a finished run to its tables and models: heads chosen on dev, test answers, every assembled model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from assyllm.adapter.base import Adapter
from assyllm.adapter.cross_attention import CrossAttentionAdapter
from assyllm.adapter.reading import readings
from assyllm.artifacts import write_json
from assyllm.assembly import search
from assyllm.assembly.assembled import AssembledModel
from assyllm.assembly.head import Head, accuracy, fit_on_dev
from assyllm.assembly.recipe import recipe_of
from assyllm.assembly.search import Chain
from assyllm.assembly.walk import Walker, edges
from assyllm.blocks.pool import Pool
from assyllm.evaluate import Label, final_rows, seen_facts
from assyllm.federated.context import Settings
from assyllm.federated.data import TaskData
from assyllm.federated.rounds import reported
from assyllm.federated.state import State
from assyllm.federated.witness import Witness
from assyllm.results import Metric, Prediction, Run, write_rows, write_table

MODEL_COLUMNS = (
    "run_id", "method", "task", "seed", "setting", "model", "blocks", "n_blocks", "families", "size_bytes",
    "compatibility", "ended", "trained_joins", "accuracy_test", "accuracy_dev", "reported", "source",
)  # fmt: skip


@dataclass
class Assembled:
    """A finished model with its head and answers."""

    chain: Chain
    head: Head
    ridge: float
    dev: float
    test: float
    chosen: np.ndarray  # [test questions]
    size_bytes: int


@dataclass
class Outcome:
    """What a task's run came to: all models, best first, and the rounds' rows."""

    data: TaskData
    state: State
    models: list[Assembled]

    @property
    def reported(self) -> Assembled:
        """The model that the run stands for (:func:`rounds.reported`)."""
        return self.models[0]


def outcome(
    pool: Pool,
    data: TaskData,
    settings: Settings,
    state: State,
    judged: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Outcome:
    """Choose each finished model's ridge on the development split and answer the test split.

    Args:
        judged: model -> dev and test -> its features ``[N, C, F]``, where the rounds have them already.
    """
    made: dict[str, Assembled] = {}
    dev, test = (data.encoded(pool, next(iter(pool.models)), split) for split in ("dev", "test"))
    walkers = {
        split: Walker(pool, readings(pool, partial(data.encoded, pool, split=split)), state.joined)
        for split in ("dev", "test")
    }
    for chain in sorted(state.finished, key=lambda c: c.id):
        features = dict((judged or {}).get(chain.id, {}))
        for split, walker in walkers.items() if not features else ():
            features[split] = walker.features(chain.blocks, settings.head.scope, settings.head.sketch_dims)
            walker.forget(chain.blocks)
        judges = settings.head.ridge_grid, features["dev"], dev.choice_mask, dev.answer
        if settings.federated.check_sums:
            head, ridge, on_dev = Witness(*judges).fit(state.heads.get(chain.id))
        else:
            head, ridge, on_dev = fit_on_dev(state.heads[chain.id], *judges)
        made[chain.id] = Assembled(
            chain=chain,
            head=head,
            ridge=ridge,
            dev=on_dev,
            test=accuracy(head, features["test"], test.choice_mask, test.answer),
            chosen=head(features["test"], test.choice_mask).argmax(-1).numpy(),
            size_bytes=size_bytes(pool, chain, state),
        )
    models = [made[chain.id] for chain in search.ranked(state.finished, settings.rule.by_labels)]
    best = reported(state, settings.rule).id
    return Outcome(data, state, sorted(models, key=lambda model: model.chain.id != best))


def size_bytes(pool: Pool, chain: Chain, state: State) -> int:
    """Bytes of a model's tensors: blocks as the pool stores them, adapters in float32 (its head is a vector).

    An adapter that reads the text again needs its model's embedding too, where no start block brings it.
    """
    adapters = adapters_of(chain, state)
    held = {pool.info(block).model for block in chain.blocks if pool.info(block).kind == "start"}
    read = {
        pool.info(block).model
        for block, adapter in zip(chain.blocks, adapters, strict=True)
        if adapter is not None and adapter.reads
    }
    blocks = sum(pool.info(block).bytes for block in chain.blocks)
    embeddings = sum(pool.embedding_bytes(model) for model in sorted(read - held))
    return blocks + embeddings + sum(adapter.bytes for adapter in adapters if adapter is not None)


def adapters_of(chain: Chain, state: State) -> list[Adapter | None]:
    """One adapter per block, None before what reads the text and at natural continuations."""
    return [None, *(state.joined[name] for name in edges(chain.blocks))]


def assemble(
    pool: Pool, found: Outcome, settings: Settings, params_sha: str, provenance: dict[str, Any]
) -> AssembledModel:
    """The reported model, ready to answer questions or to be saved."""
    best, data = found.reported, found.data
    adapters = adapters_of(best.chain, found.state)
    chosen = settings.head
    head = {"kind": "ridge", "scope": chosen.scope, "ridge": best.ridge, "sketch_dims": chosen.sketch_dims}
    recipe = recipe_of(
        pool, best.chain.blocks, adapters, data.task, data.max_tokens, head,
        round(best.chain.worth(settings.rule.by_labels), 4), params_sha, provenance,
    )  # fmt: skip
    blocks = [pool.resident(block) for block in best.chain.blocks]
    models = {pool.info(block).model for block in best.chain.blocks}
    return AssembledModel(
        blocks,
        adapters,
        best.head,
        recipe,
        tokenizers={model: pool.tokenizer(model) for model in sorted(models)},
        embeddings={model: pool.embedding(model) for model in sorted(models)},
    ).eval()


def write_run(
    folder: Path,
    outcomes: Sequence[Outcome],
    pool: Pool,
    settings: Settings,
    *,
    run_id: str,
    method: str,
    world: str,
    seed: int,
    setting: str,
    alpha: float,
    weights_sha: str,
    params_sha: str,
    code_sha: str,
) -> None:
    """Write a run's tables and models into ``folder``."""
    metrics: list[Metric] = []
    predictions: list[Prediction] = []
    models: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []
    dropped: dict[str, Any] = {}
    for found in outcomes:
        task, state = found.data.task, found.state
        common: dict[str, Any] = {
            "run_id": run_id, "method": method, "task": task, "world": world, "seed": seed, "setting": setting,
        }  # fmt: skip
        label = Label(**common)
        train, tests = found.data.splits["train"], found.data.splits["test"]
        seen = seen_facts((train[item] for items in found.data.owned for item in items), tests)
        final = final_rows(label, tests, found.reported.chosen, seen, found.reported.dev)
        metrics += [*final[0], *_metrics(found, label)]
        predictions += final[1]
        for place, model in enumerate(found.models):
            row = {key: value for key, value in common.items() if key != "world"}
            models.append(row | _model_row(pool, model, state, settings.rule.by_labels) | {"reported": int(place == 0)})
        timings += [
            {"run_id": run_id, "what": f"{task}/round/{i}", "value": seconds, "unit": "s"}
            for i, seconds in enumerate(state.seconds, start=1)
        ]
        dropped[task] = state.dropped
        provenance = {"run": run_id, "seed": seed, "rounds": state.round, "code": code_sha}
        product = assemble(pool, found, settings, params_sha, provenance)
        product.save_pretrained(folder / "models" / task)
        shortened = float(found.data.shortened(pool, product.tokenizers))
        metrics.append(label.row("", "shortened_questions", shortened))
    run = Run(
        run_id=run_id, method=method, tasks=" ".join(found.data.task for found in outcomes), world=world,
        models=" ".join(pool.models), weights_sha=weights_sha, budget="none", alpha=alpha, seed=seed,
        params_sha=params_sha, code_sha=code_sha, setting=setting, device="cpu",
    )  # fmt: skip
    write_rows(folder / "metrics.csv", Metric, metrics)
    write_rows(folder / "run.csv", Run, [run])
    write_rows(folder / "predictions.csv", Prediction, predictions)
    write_table(folder / "models.csv", models, MODEL_COLUMNS)
    write_table(folder / "timings.csv", timings, ("run_id", "what", "value", "unit"))
    write_json(folder / "dropped_votes.json", dropped)


def _metrics(found: Outcome, label: Label) -> list[Metric]:
    rows, state = [], found.state
    for row in state.rows:
        at = row["round"]
        for name in ("participants", "bytes_up", "bytes_down", "bytes_up_votes", "bytes_up_sums"):
            rows.append(label.row("", name, float(row[name]), round=at))
        if "stragglers" in row:
            rows.append(label.row("", "stragglers", float(row["stragglers"]), round=at))
        rows += [label.row(split, "accuracy", row[split], round=at) for split in ("dev", "test") if split in row]
        if "loss" in row:
            rows.append(label.row("train", "loss", row["loss"], round=at, unit=row["loss_unit"]))
    for family, count in sorted(state.chosen.items()):
        rows.append(label.row("", "times_chosen", float(count), block=family))
    for name, value in (("models_assembled", len(found.models)), ("votes_dropped", len(state.dropped))):
        rows.append(label.row("", name, float(value)))
    return rows


def _model_row(pool: Pool, model: Assembled, state: State, adding: bool) -> dict[str, Any]:
    chain = model.chain
    trained = sum(isinstance(adapter, CrossAttentionAdapter) for adapter in adapters_of(chain, state))
    return {
        "model": chain.id,
        "blocks": " ".join(chain.blocks),
        "n_blocks": len(chain.blocks),
        "families": " ".join(sorted({pool.info(block).family for block in chain.blocks})),
        "size_bytes": model.size_bytes,
        "compatibility": chain.worth(adding),
        "ended": chain.ended,
        "trained_joins": trained,
        "accuracy_test": model.test,
        "accuracy_dev": model.dev,
        "source": "measured",
    }
