"""A task's data as the simulator sees it, and a cohort's share of it as its clients see theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from assyllm import params
from assyllm.adapter.base import Adapter
from assyllm.artifacts import ArtifactError
from assyllm.assembly.head import sketched
from assyllm.assembly.walk import Walker
from assyllm.blocks.pool import Pool
from assyllm.comparator import compatibility as by
from assyllm.comparator.public import Public
from assyllm.tasks.record import SPLITS, Question
from assyllm.zoo.encoding import Encoded, combine, encode


@dataclass
class TaskData:
    """One task: questions, who holds which, and what the stage ``score`` cached.

    ``native[block]`` are pooled states ``[N, C, P, d]`` of the training questions, ``hsic[c]`` client c's HSIC
    sums of all block pairs, ``histograms[block][c]`` its activation counts ``[layers, bins]``.
    """

    task: str
    max_tokens: int
    splits: Mapping[str, Sequence[Question]]
    owned: Sequence[Sequence[int]]
    blocks: Sequence[str]
    native: Mapping[str, Tensor]
    hsic: np.ndarray
    histograms: Mapping[str, np.ndarray]
    public: Public
    public_questions: Sequence[Question]
    _encoded: dict[tuple[str, str], Encoded] = field(default_factory=dict)

    def encoded(self, pool: Pool, model: str, split: str) -> Encoded:
        """A split (or "public") in a model's tokens, cached."""
        model = pool.reads_as(model)
        if (model, split) not in self._encoded:
            questions = self.public_questions if split == "public" else self.splits[split]
            self._encoded[model, split] = encode(pool.tokenizer(model), questions, self.max_tokens)
        return self._encoded[model, split]

    def shortened(self, pool: Pool, models: Iterable[str]) -> int:
        """Questions of all splits that lost more than context to ``max_tokens``, by the model that cuts most."""
        names = sorted(set(models))
        return sum(max(self.encoded(pool, name, split).cut for name in names) for split in SPLITS)


def read_scores(
    folders: Sequence[Path],
    made_of: Mapping[str, str],
    task: str,
    max_tokens: int,
    splits: Mapping[str, Sequence[Question]],
    owned: Sequence[Sequence[int]],
    blocks: Sequence[str],
    public_questions: Sequence[Question],
) -> TaskData:
    """Put the score stage's shards together.

    Args:
        made_of: hashes of the pool's manifest (``pool``) and of the task's ``partition``, which the scores must name.

    Raises:
        ArtifactError: a shard is of another pool or partition, or they do not cover every client's questions once.
    """
    shards = []
    for folder in folders:
        path = Path(folder) / f"{task}.safetensors"
        with safe_open(path, "pt") as file:
            named = json.loads((file.metadata() or {}).get("made_of", "{}"))
        for what, sha in made_of.items():
            if named.get(what) != sha:
                raise ArtifactError(f"{folder}: scores of another {what}; score this one first (assyllm score)")
        shards.append(load_file(path))
    number = len(splits["train"])
    index = torch.cat([shard["question"] for shard in shards])
    if sorted(index.tolist()) != sorted(q for items in owned for q in items):
        raise ArtifactError(f"scores of {task}: the shards do not hold every client's questions once")
    native = {}
    for block in blocks:
        parts = [shard[f"pooled/{block}"] for shard in shards]
        choices = max(part.shape[1] for part in parts)
        whole = torch.zeros(number, choices, *parts[0].shape[2:])
        for shard, part in zip(shards, parts, strict=True):
            whole[shard["question"], : part.shape[1]] = part
        native[block] = whole
    clients, order = len(owned), torch.cat([shard["client"] for shard in shards])
    hsic = torch.cat([shard["hsic"] for shard in shards])
    histograms = {b: torch.cat([shard[f"histogram/{b}"] for shard in shards]) for b in blocks}
    place = torch.argsort(order)
    if order[place].tolist() != list(range(clients)):
        raise ArtifactError(f"scores of {task}: the shards do not hold every client once")
    return TaskData(
        task=task,
        max_tokens=max_tokens,
        splits=splits,
        owned=owned,
        blocks=blocks,
        native=native,
        hsic=hsic[place].numpy(),
        histograms={block: counts[place].numpy() for block, counts in histograms.items()},
        public=Public.from_tensors(load_file(Path(folders[0]) / f"{task}.public.safetensors")),
        public_questions=public_questions,
    )


class Scoring(Protocol):
    """Gives the adapter that a candidate is tried with (:class:`assyllm.federated.joins.Joins`)."""

    def scoring(self, chain: tuple[str, ...], block: str) -> Adapter | None: ...


class Cohort:
    """The clients of one round, their forward passes batched; :meth:`view` is what one of them sees.

    Args:
        walker: gives the walker over some training questions.
        joins: gives the adapter that a candidate is tried with.
        head: whose features are taken.
    """

    def __init__(
        self,
        pool: Pool,
        data: TaskData,
        clients: Sequence[int],
        walker: Callable[[Sequence[int]], Walker],
        joins: Scoring,
        head: params.Head,
    ) -> None:
        self.pool, self.data, self.clients, self.joins, self.head = pool, data, clients, joins, head
        self.items = [item for client in clients for item in data.owned[client]]
        ends = np.cumsum([0, *[len(data.owned[client]) for client in clients]])
        self.places = {c: slice(int(a), int(b)) for c, a, b in zip(clients, ends[:-1], ends[1:], strict=True)}
        encoded = data.encoded(pool, next(iter(pool.models)), "train")
        self.real, self.answer = encoded.choice_mask[self.items], encoded.answer[self.items]
        self.walker = walker(self.items)
        self._assembled: dict[tuple[tuple[str, ...], str], Tensor] = {}
        self._tried: dict[tuple[tuple[str, ...], str], Tensor] = {}
        self._features: dict[tuple[str, ...], Tensor] = {}
        self._pooled: dict[str, Tensor] = {}

    def assembled(self, chain: tuple[str, ...], block: str) -> Tensor:
        """Features ``[n, C, F]`` of a candidate's output on the chain, outlier dimensions tamed."""
        if (chain, block) not in self._assembled:
            vectors = self.walker.candidate(chain, block, self.joins.scoring(chain, block))
            self._assembled[chain, block] = combine(vectors) * self.data.public.scale[block]
        return self._assembled[chain, block]

    def tried(self, chain: tuple[str, ...], block: str) -> Tensor:
        """The head's features ``[n, C, F]`` of a candidate on the chain; of its last block, where several enter."""
        entering = by.blocks_of(block)
        if self.pool.info(entering[0]).kind == "start":
            chain = ()  # what stands before blocks that read the text changes nothing
        if (chain, block) not in self._tried:
            if len(entering) > 1:
                vectors = self.walker.vectors(entering)
            else:
                vectors = self.walker.candidate(chain, block, self.joins.scoring(chain, block))
            self._tried[chain, block] = sketched(combine(vectors), self.head.sketch_dims, entering[-1])
        return self._tried[chain, block]

    def pooled(self, block: str) -> Tensor:
        """What a block gives in its own model ``[n, C, P, d]``."""
        if block not in self._pooled:
            self._pooled[block] = self.data.native[block][self.items]
        return self._pooled[block]

    def native(self, block: str) -> Tensor:
        """Features ``[n, C, F]`` of that, outlier dimensions tamed."""
        return combine(self.pooled(block)) * self.data.public.scale[block]

    def features(self, chain: tuple[str, ...]) -> Tensor:
        """The head's features ``[n, C, F]`` of a chain."""
        if chain not in self._features:
            self._features[chain] = self.walker.features(chain, self.head.scope, self.head.sketch_dims)
        return self._features[chain]

    def surveyed(self, models: Sequence[Sequence[str]], dims: int) -> Tensor:
        """Features ``[n, C, F]`` of all blocks of whole models side by side, at most ``dims`` of each."""
        return surveyed(self.walker, models, dims)

    def view(self, client: int) -> ClientView:
        """One client's part of the cohort."""
        return ClientView(self, client)


def surveyed(walker: Walker, models: Sequence[Sequence[str]], dims: int) -> Tensor:
    """Features ``[n, C, F]`` of all blocks of whole models side by side, at most ``dims`` of each."""
    parts = []
    for blocks in models:
        parts.append(walker.features(blocks, "all_blocks", dims))
        walker.forget()
    return torch.cat(parts, dim=-1)


class ClientView:
    """A client's own examples (see :class:`assyllm.federated.client.ClientData`)."""

    def __init__(self, cohort: Cohort, client: int) -> None:
        self._cohort = cohort
        self.client = client
        self._place = cohort.places[client]
        self._real = cohort.real[self._place]
        self.examples = self._place.stop - self._place.start
        self.choice_mask = self._real
        self.answer = cohort.answer[self._place]

    def _rows(self, states: Tensor) -> Tensor:
        """Real choices of ``[n, C, ...]``."""
        return states[self._real[:, : states.shape[1]]]

    def assembled(self, chain: tuple[str, ...], block: str) -> Tensor:
        """X ``[rows, F]``."""
        return self._rows(self._cohort.assembled(chain, block)[self._place])

    def native(self, block: str) -> Tensor:
        """Y ``[rows, F]``."""
        return self._rows(self._cohort.native(block)[self._place])

    def arriving(self, chain: tuple[str, ...]) -> Tensor:
        """Pooled states at the chain's end ``[rows * P, d]``."""
        return self._rows(self._cohort.walker.vectors(chain)[self._place]).flatten(0, 1)

    def candidate(self, chain: tuple[str, ...], block: str) -> Tensor:
        """The head's features ``[n, C, F]`` of a candidate on a chain (a first block where it is empty)."""
        return self._cohort.tried(chain, block)[self._place]

    def features(self, chain: tuple[str, ...]) -> Tensor:
        """The head's features ``[n, C, F]`` of a chain."""
        return self._cohort.features(chain)[self._place]

    def surveyed(self, models: Sequence[Sequence[str]], dims: int) -> Tensor:
        """Features ``[n, C, F]`` of all blocks of whole models side by side."""
        return self._cohort.surveyed(models, dims)[self._place]

    def explained(self, chain: tuple[str, ...], head: Tensor) -> Tensor:
        """Scores ``[n, C]`` of the chain's head so far."""
        return self.features(chain).double() @ head.double()

    def received(self, block: str) -> Tensor | None:
        """Pooled states that the block natively receives ``[rows * P, e]``."""
        before = self._cohort.pool.before(block)
        if before is None:
            return None
        return self._rows(self._cohort.pooled(before)[self._place]).flatten(0, 1)
