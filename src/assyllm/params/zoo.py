"""Sections ``zoo``, ``world``, ``tasks`` and ``partition``: the models, and whose data they meet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from assyllm.params.names import PUBLISHED, Family, StandsFor, Task
from assyllm.params.section import Count, Fraction, ModelName, Positive, Rate, Section, Seed, nearest


class Pretrain(Section):
    """How the zoo's own models are trained from scratch."""

    corpus: Path | None
    rows: Count
    passages: Annotated[int, Field(ge=0)]
    max_tokens: Annotated[int, Field(ge=16)]  # a question of the generated world has up to 14
    batch: Count
    matrix_learning_rate: Rate
    other_learning_rate: Rate
    answer_weight: Positive
    device: Literal["cpu", "cuda"]
    bf16: bool


PRETRAIN = {  # what a stage is given that trains no member
    "corpus": None, "rows": 1, "passages": 0, "max_tokens": 16, "batch": 1, "matrix_learning_rate": 1.0,
    "other_learning_rate": 1.0, "answer_weight": 1.0, "device": "cpu", "bf16": False,
}  # fmt: skip
SHAPE = ("hidden_size", "intermediate_size", "layers", "heads")


class Member(Section):
    """One model of the zoo. Shapes count only where the model is pre-trained here."""

    family: Family
    """llama | opt | bert | roberta: how the model is split; of a model pre-trained here, its architecture too"""
    stands_for: StandsFor
    """the real model whose shape decides memory, times and who takes part"""
    source: Literal["embedded", "local", "hub", "random"] | None = None
    """as `zoo.source`, for this member alone; null: that one"""
    path: Path | None = None
    """of `local`: its transformers folder (safetensors)"""
    hub_id: str | None = None
    """of `hub`: owner/name"""
    revision: str | None = None
    """of `hub`: a commit; `assyllm zoo plan --pin` writes it"""
    licence: str | None = None
    """of `hub` and `local`: told with every model that has blocks of it"""
    continued_from: str | None = None
    """pre-trained here: goes on from this member, with its shape and tokenizer"""
    facets: list[int] = Field(default_factory=list)
    """pre-trained here: attributes of the world whose sentences it reads; none: it reads `zoo.pretrain.corpus`"""
    hidden_size: Count = 64
    """width; this and what follows of models pre-trained here only"""
    intermediate_size: Count = 172
    """inner width of the MLP"""
    layers: Annotated[int, Field(ge=2)] = 4  # a model is cut into two blocks at least
    """at least 2"""
    heads: Count = 8
    """of attention; they divide the width"""
    key_value_heads: Count | None = None
    """llama: fewer than heads for grouped queries; null: as many"""
    vocabulary: Count = 512
    """most tokens, special ones and the world's words included"""
    steps: Count = 500
    """of pre-training, `zoo.pretrain.batch` rows each"""
    other_learning_rate: Rate | None = None
    """instead of `zoo.pretrain.other_learning_rate`"""

    @model_validator(mode="after")
    def _heads_divide(self) -> Member:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        if self.family == "llama" and self.hidden_size // self.heads % 2:
            each = self.hidden_size // self.heads
            raise ValueError(f"hidden_size {self.hidden_size} is {each} a head; rotary positions need an even number")
        if self.key_value_heads is not None and self.heads % self.key_value_heads:
            raise ValueError(f"key_value_heads {self.key_value_heads} does not divide heads {self.heads}")
        return self


class Zoo(Section):
    """The pre-trained models whose blocks are assembled."""

    source: Literal["embedded", "local", "hub", "random"]
    models: dict[ModelName, Member] = Field(min_length=1)
    pretrain: Pretrain

    def source_of(self, name: str) -> str:
        """Where a member comes from: its own ``source``, else the zoo's."""
        return self.models[name].source or self.source

    @model_validator(mode="after")
    def _members_complete(self) -> Zoo:
        for name, member in self.models.items():
            source = self.source_of(name)
            if source == "local" and member.path is None:
                raise ValueError(f"models.{name}.path: needed when its source is local")
            if source == "hub" and not (member.hub_id and member.licence):  # a revision: `assyllm zoo plan --pin`
                raise ValueError(f"models.{name}: hub_id and licence are needed when its source is hub")
            base = member.continued_from
            if base is not None and (base not in self.models or base == name):
                raise ValueError(f"models.{name}.continued_from: {base!r} is not another member of the zoo")
            if base is not None and self.models[base].continued_from is not None:
                raise ValueError(f"models.{name}.continued_from: {base!r} is itself continued from a model")
            if base is not None and {source, self.source_of(base)} == {"embedded"}:  # its shape is the base's
                shape = {key: getattr(self.models[base], key) for key in SHAPE}
                for key, theirs in shape.items():
                    if key in member.model_fields_set and (mine := getattr(member, key)) != theirs:
                        raise ValueError(f"models.{name}.{key}: {mine}, but {base}, which it continues, has {theirs}")
                self.models[name] = member.model_copy(update=shape)
        return self


class World(Section):
    """The generated world that the embedded zoo and tasks are about."""

    seed: Seed
    entities: Annotated[int, Field(ge=1, le=100_000)]  # names are of three syllables, 274,625 in all
    facets: Annotated[int, Field(ge=1, le=6)]
    values: Annotated[int, Field(ge=4, le=6)]
    wordings: Literal["corpus", "new", "both"]
    held_out: Annotated[float, Field(gt=0, lt=1)]


class Tasks(Section):
    """Which tasks, from where, and how they are cut."""

    names: list[Task] = Field(min_length=1)
    source: Literal["world", "local", "hub"]
    local_dir: Path
    max_tokens: dict[Task, Count]
    train_items: dict[Task, Count | None]
    dev_items: Count
    test_items: Count | None
    unseen_fraction: Fraction

    @property
    def lengths(self) -> dict[str, int]:
        """Task -> tokens of its longest row, of the tasks that are run."""
        return {name: self.max_tokens[name] for name in self.names}

    @model_validator(mode="after")
    def _each_once(self) -> Tasks:
        if len(set(self.names)) != len(self.names):
            raise ValueError("names: a task is listed twice")
        own = next((name for name in self.names if name not in PUBLISHED), None)
        if own is not None and self.source != "local":
            near = nearest(own, PUBLISHED) or f"; known are {', '.join(PUBLISHED)}, others need source: local"
            raise ValueError(f"names: {self.source} has no task {own!r}{near}")
        for name in self.names:
            if name not in self.max_tokens:
                raise ValueError(f"max_tokens: no entry for {name}")
            if name not in self.train_items:
                raise ValueError(f"train_items: no entry for {name}")
        return self


class Partition(Section):
    """How the training items are dealt to the clients."""

    clients: Count
    alpha: Positive
    by: Literal["label", "topic", "quantity"]
    items_per_client: Count | None
