"""Every knob of the study as typed, frozen models; unknown keys are refused with the nearest known name.

``params.yaml`` is the only place a user edits. A stage receives the sections its rule declares, as JSON, and
can read no other key: :func:`parse_sections` gives exactly those. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Hashable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from assyllm.artifacts import ArtifactError, read_text, sha256_text

Task = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
PUBLISHED = ("boolq", "piqa", "openbookqa")  # tasks that the world and the hub have; any other is one's own JSON lines
Family = Literal["llama", "opt", "bert", "roberta"]
StandsFor = Literal["llama-7b", "vicuna-7b", "opt-6.7b", "bert-base", "roberta-large"]
Method = Literal[
    "majority", "zero_shot", "choices_only", "one_model_head", "ft_oracle", "ft_practical", "lora", "lora_all", "qlora",
    "qlora_recomputation", "fedadapter", "fwdllm", "recomputation", "swapping",
    "assyllm_paper", "assyllm", "random_blocks", "untrained_blocks", "one_model_blocks",
]  # fmt: skip
TUNED = ("ft_oracle", "ft_practical", "lora", "lora_all", "qlora", "qlora_recomputation", "fedadapter", "fwdllm")
# methods whose step gives another's gradients: its tuning, and its run where the same clients take part
SHARES = {"recomputation": "ft_oracle", "swapping": "ft_oracle"}
LOW_RANK = ("lora", "lora_all", "qlora", "qlora_recomputation", "fwdllm")  # train low-rank adapters
# methods over a model whose own weights stay as they are: `frozen_base.bits` says in how many bits (qlora: 4)
FROZEN_BASE = ("lora", "lora_all", "fedadapter", "fwdllm")
STUDIES = ("default", "full", "zoos", "ablations", "non_iid", "dropouts", "check")
HEADS = ("one_model_head", "choices_only")  # closed-form heads, settings under `baselines.closed_form`
BASELINES = ("majority", "zero_shot", *HEADS, *TUNED, *SHARES)
ASSEMBLING = ("assyllm_paper", "assyllm", "random_blocks", "untrained_blocks", "one_model_blocks")
# controls: a method's settings with another selection rule, or on untrained blocks
CONTROLS = {
    "random_blocks": ("assyllm", "probe_random"),
    "untrained_blocks": ("assyllm", None),
    "one_model_blocks": ("assyllm", "probe_one_model"),
}

Fraction = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]  # somebody must be left
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[\w.-]+$")]  # of a folder and a wildcard


class ParamsError(ArtifactError):
    """A parameter is wrong; the message names its key."""


class Section(BaseModel):
    """A frozen group of parameters that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


# ---------------------------------------------------------------------------------------------- the study


class PrecisionStudy(Section):
    """Accuracy against bytes without a re-fit: whose models, and the settings whose pools they are put on."""

    fitted_on: str
    settings: list[str] = Field(min_length=1)


class Study(Section):
    """What is run: seeds, zoos and, for each named setting, the methods."""

    seeds: list[Seed] = Field(min_length=1)
    zoo_seeds: list[Seed] = Field(min_length=1)
    runs: dict[str, Annotated[list[Method], Field(min_length=1)]] = Field(min_length=1)
    precision: PrecisionStudy | None = None
    figures: list[str] | None = None


class Studies(Section):
    """What can be run: `snakemake`, and `snakemake <name>` of another study."""

    default: Study
    full: Study
    zoos: Study | None = None
    ablations: Study | None = None
    non_iid: Study | None = None
    dropouts: Study | None = None
    check: Study | None = None


# ---------------------------------------------------------------------------------------- models and tasks


class Pretrain(Section):
    """How the zoo's own models are trained from scratch."""

    corpus: Path | None
    rows: Count
    passages: Annotated[int, Field(ge=0)]
    max_tokens: Annotated[int, Field(ge=8)]
    batch: Count
    matrix_learning_rate: Positive
    other_learning_rate: Positive
    answer_weight: Positive
    device: Literal["cpu", "cuda"]
    bf16: bool


class Member(Section):
    """One model of the zoo. Shapes count only where the model is pre-trained here."""

    family: Family
    stands_for: StandsFor
    source: Literal["embedded", "local", "hub", "random"] | None = None
    path: Path | None = None
    hub_id: str | None = None
    revision: str | None = None
    licence: str | None = None
    continued_from: str | None = None
    facets: list[int] = Field(default_factory=list)
    hidden_size: Count = 64
    intermediate_size: Count = 172
    layers: Count = 4
    heads: Count = 8
    key_value_heads: Count | None = None
    vocabulary: Count = 512
    steps: Count = 500
    other_learning_rate: Positive | None = None

    @model_validator(mode="after")
    def _heads_divide(self) -> Member:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        if self.key_value_heads is not None and self.heads % self.key_value_heads:
            raise ValueError(f"key_value_heads {self.key_value_heads} does not divide heads {self.heads}")
        return self


class Zoo(Section):
    """The pre-trained models whose blocks are assembled."""

    source: Literal["embedded", "local", "hub", "random"]
    models: dict[Name, Member] = Field(min_length=1)
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
        return self


class World(Section):
    """The generated world that the embedded zoo and tasks are about."""

    seed: int
    entities: Count
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


# ------------------------------------------------------------------------------------------- the components


class Blocks(Section):
    """Where a model is cut into blocks (paper section 4.1)."""

    members: Annotated[list[str], Field(min_length=1)] | None = None
    edge_to_middle: Positive
    blocks_per_model: Annotated[int, Field(ge=2)] | None


Width = Literal[0, 2, 3, 4, 5, 6, 7, 8, 16]
Score = Literal["sparsity", "noise", "masking", "output", "correlation", "replaced"]


class Sensitivity(Section):
    """What is learnt of the blocks' weights before quantizing, from the server's public text."""

    scores: list[Score] = Field(min_length=1)
    group_size: Count
    texts: Count
    probes: Count
    moments: bool


class Quantize(Section):
    """Precision of the pool's weights (paper section 3.4)."""

    scheme: Literal["uniform", "mixed", "layerwise", "paper", "nf4", "llm_int8"]
    bits: Literal[3, 4, 8, 16]
    budget_bits: Positive
    widths: list[Width] = Field(min_length=1)
    score: Score
    rounding: Literal["nearest", "compensated"]
    group_size: Count
    embedding_bits: Literal[4, 8, 16]
    sparsity_quantile: Fraction
    output_quantile: Fraction

    @property
    def allocates(self) -> bool:
        """Whether rows get widths of their own, to a budget."""
        return self.scheme in ("mixed", "layerwise", "paper")

    @property
    def widths_used(self) -> list[int]:
        """The widths that allocation may give, ascending; the paper's rule knows INT4 and INT8 only."""
        return [4, 8] if self.scheme == "paper" else list(self.widths)

    @property
    def needs_sensitivity(self) -> bool:
        """Whether quantizing reads scores or moments."""
        return self.allocates or self.needs_moments

    @property
    def needs_moments(self) -> bool:
        """Whether rounding is compensated, which takes second moments of every layer's inputs."""
        rounded = self.allocates or (self.scheme == "uniform" and self.bits < 16)
        return rounded and self.rounding == "compensated"

    @property
    def mean_bits(self) -> float:
        """Bits a weight in memory."""
        return {"uniform": float(self.bits), "nf4": 4.5, "llm_int8": 8.0}.get(self.scheme, self.budget_bits)

    @model_validator(mode="after")
    def _ascending(self) -> Quantize:
        if self.widths != sorted(set(self.widths)):
            raise ValueError(f"widths: {self.widths} are not ascending, each once")
        return self


class Swapper(Section):
    """How blocks come into memory and leave it (paper section 3.5)."""

    budget_gb: Positive | None
    policy: Literal["plan", "belady", "lru", "lru_correlation", "mru", "random"]
    window_layers: Count | None
    preload: bool
    preswap: bool


class SwapStudy(Section):
    """The measured ablation of the swapper: a model of random weights on a storage of a set pace."""

    layers: Annotated[int, Field(ge=4)]
    hidden_size: Annotated[int, Field(ge=64, multiple_of=64)]
    storage_mb_per_s: Positive
    budget_shares: list[Annotated[float, Field(gt=0, le=1)]] = Field(min_length=1)
    passes: Annotated[int, Field(ge=2)]


class Comparator(Section):
    """How compatibility of two blocks is measured (paper section 3.2)."""

    estimator: Literal["unbiased", "biased"]
    cka_weight: Fraction
    cka_batch: Annotated[int, Field(ge=4)]
    histogram_bins: Annotated[int, Field(ge=2)]
    public_texts: Annotated[int, Field(ge=4)]
    shards: Count


class Adapter(Section):
    """How unlike blocks are joined (paper section 3.3)."""

    kind: Literal["linear", "fixed_attention", "cross_attention"]
    ridge: Positive
    rank: Count = 16
    tuning: Literal["none", "local", "end_to_end"] = "none"
    tuning_rounds: Count = 40
    learning_rate: Positive = 0.01
    mismatch: Fraction = 0.1

    @model_validator(mode="after")
    def _only_attention_is_trained(self) -> Adapter:
        if self.tuning != "none" and self.kind != "cross_attention":
            raise ValueError(f"tuning: {self.tuning} goes with kind cross_attention only")
        return self


class Selection(Section):
    """How the next block is chosen (paper sections 3.1 and 4.1)."""

    rule: Literal[
        "paper", "paper_distinct", "paper_other_model", "cka_only", "cor_only", "random",
        "probe", "probe_random", "probe_one_model",
    ]  # fmt: skip
    evaluated_per_round: Count | None
    kept_per_round: Count
    beam: Count
    rounds_per_block: Count
    least_answers: Fraction = 1.0
    vote: Literal["weighted", "median", "borda"] = "weighted"
    max_blocks: Annotated[int, Field(ge=2)]

    @model_validator(mode="after")
    def _kept_fits(self) -> Selection:
        if self.evaluated_per_round is not None and self.kept_per_round > self.evaluated_per_round:
            raise ValueError(
                f"kept_per_round: {self.kept_per_round} is more than evaluated_per_round ({self.evaluated_per_round})"
            )
        return self


class Head(Section):
    """The one scoring head of every method."""

    scope: Literal["last_block", "all_blocks"]
    ridge_grid: list[Positive] = Field(min_length=1)
    rounds: Count
    sketch_dims: Count | None = None


class Assembling(Section):
    """One way to assemble blocks: how they are chosen, joined and read."""

    selection: Selection
    adapter: Adapter
    head: Head

    @model_validator(mode="after")
    def _probes_read_all_blocks(self) -> Assembling:
        if self.selection.rule.startswith("probe") and self.head.scope != "all_blocks":
            rule = self.selection.rule
            raise ValueError(
                f"head.scope: {self.head.scope} does not go with rule {rule}, whose gains are of all blocks"
            )
        return self


class Assemblings(Section):
    """The paper's method and ours; controls take ours with another rule. A run is given its own only."""

    assyllm_paper: Assembling | None = None
    assyllm: Assembling | None = None

    def of(self, method: str) -> Assembling:
        """The settings of a method or control."""
        name, rule = CONTROLS.get(method, (method, None))
        found: Assembling | None = getattr(self, name, None)
        if found is None:
            raise ParamsError(f"assembling.{name}: missing")
        if rule is None:
            return found
        return found.model_copy(update={"selection": found.selection.model_copy(update={"rule": rule})})


class Federated(Section):
    """The round loop that every method shares."""

    clients_per_round: Count
    dropout: Part
    stragglers: Part
    liars: Fraction
    lie: Literal["votes", "sums"]
    row_norm: Positive | None
    max_examples: Count | None
    least_clients: Count = 2


# ---------------------------------------------------------------------------------------------- baselines


RATES = ("server_rate", "learning_rate")


class Tuning(Section):
    """One method's tuned settings (the grid and its result are in EXPERIMENTS.md).

    By default FedAdam (Reddi 2021): a client makes one step of plain SGD over all its items, the server's Adam follows
    their average. ``learning_rate`` is then only a scale, which Adam takes out. A rate is a number, or one for every
    model that may be fine-tuned.
    """

    server_rate: Positive | dict[str, Positive]
    rounds: Count
    local_epochs: Count
    batch: Count
    server: Literal["fedavg", "fedavgm", "fedadam"] = "fedadam"
    learning_rate: Positive | dict[str, Positive] = 1.0
    optimizer: Literal["sgd", "momentum", "adamw"] = "sgd"
    head_factor: Positive = 1.0

    @model_validator(mode="after")
    def _one_step_of_sgd(self) -> Tuning:
        if self.optimizer == "sgd" and self.local_epochs > 1:
            raise ValueError("local_epochs: sgd makes one step a round; momentum or adamw may make several")
        return self

    def rates_of(self, model: str) -> tuple[float, float]:
        """The server's rate and the clients' where ``model`` is fine-tuned."""
        server, clients = self.server_rate, self.learning_rate
        return (
            server[model] if isinstance(server, dict) else server,
            clients[model] if isinstance(clients, dict) else clients,
        )

    def at(self, rate: float, local_epochs: int, rounds: int) -> Tuning:
        """This tuning at a point of the grid; the rate is the server's, with FedAvg the clients'."""
        knob = "learning_rate" if self.server == "fedavg" else "server_rate"
        return self.model_copy(update={knob: rate, "local_epochs": local_epochs, "rounds": rounds})


class LoraTuning(Tuning):
    """Low-rank adapters (Hu 2022) on the queries and values, or on every linear layer."""

    rank: Count = 8
    alpha: Count = 16
    targets: Literal["query_value", "all"] = "all"


class FedAdapterTuning(Tuning):
    """Bottleneck adapters that grow from the top (Cai 2023)."""

    depth: Count = 1
    width: Count = 8
    deeper: Count = 1
    wider: Count = 8
    trial_every: Count = 15
    trial_rounds: Count = 3

    @model_validator(mode="after")
    def _trials_fit(self) -> FedAdapterTuning:
        if self.trial_rounds > self.trial_every:
            raise ValueError(f"trial_rounds: {self.trial_rounds} is more than trial_every ({self.trial_every})")
        return self


class FwdLLMTuning(LoraTuning):
    """Forward gradients along random directions (Xu 2024)."""

    estimator: Literal["central", "jvp"] = "central"
    step: Positive = 0.01
    directions: Count = 2
    max_directions: Count = 4
    candidates: Count = 4
    variance: Fraction = 0.8

    @property
    def asks(self) -> int:
        """How often a cohort is asked in a round, at most."""
        return max(1, self.max_directions // self.directions)

    def at(self, rate: float, local_epochs: int, rounds: int) -> Tuning:
        """This tuning at a point of the grid; a client makes one estimate a round, whatever its epochs."""
        return super().at(rate, 1, rounds)


class ClosedForm(Section):
    """The closed-form head on one frozen model, and how many rounds its sums take."""

    ridge_grid: list[Positive] = Field(min_length=1)
    rounds: Count
    scope: Literal["last_layer", "all_layers"] = "all_layers"
    sketch_dims: Count | None = 256


class Baselines(Section):
    """The fine-tuning methods that AssyLLM is compared with."""

    model: str
    evaluate_every: Count
    test_every: Count
    closed_form: ClosedForm
    ft_oracle: dict[Task, Tuning] = Field(default_factory=dict)  # a run is given its own method's only
    ft_practical: dict[Task, Tuning] = Field(default_factory=dict)
    lora: dict[Task, LoraTuning] = Field(default_factory=dict)
    lora_all: dict[Task, LoraTuning] = Field(default_factory=dict)
    qlora: dict[Task, LoraTuning] = Field(default_factory=dict)
    qlora_recomputation: dict[Task, LoraTuning] = Field(default_factory=dict)
    fedadapter: dict[Task, FedAdapterTuning] = Field(default_factory=dict)
    fwdllm: dict[Task, FwdLLMTuning] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _judged_together(self) -> Baselines:
        if self.test_every % self.evaluate_every:
            raise ValueError(f"test_every: {self.test_every} is no multiple of evaluate_every: {self.evaluate_every}")
        shapes = {method: self._adapters(method) for method in LOW_RANK}
        for method, found in shapes.items():
            if len(found) > 1:
                raise ValueError(f"{method}: other adapters for other tasks, but one cost table stands for all of them")
        if shapes["lora"] and shapes["lora_all"] and shapes["lora"] != shapes["lora_all"]:
            raise ValueError("lora_all: other adapters than those of lora, whose cost table it shares")
        return self

    def _adapters(self, method: str) -> set[tuple[str, int, int]]:
        tunings = getattr(self, method).values()
        return {(t.targets, t.rank, getattr(t, "max_directions", 1)) for t in tunings}

    def low_rank(self, method: str) -> LoraTuning | None:
        """The tuning of a method that trains low-rank adapters (of any task: their adapters are alike)."""
        tunings = list(getattr(self, method).values()) if method in LOW_RANK else []
        return tunings[0] if tunings else None


class Tune(Section):
    """The grid of `snakemake tuning`, the same for every method."""

    rates: list[Positive] = Field(min_length=1)
    local_epochs: list[Count] = Field(min_length=1)
    rounds: Count
    seed: int


# ------------------------------------------------------------------------------------------ cost and fleet


class Fleet(Section):
    """Memory of the clients' devices: GB (10^9 bytes) -> share of the clients."""

    memory_gb: dict[Count, Fraction]
    reserve_gb: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _sums_to_one(self) -> Fleet:
        total = sum(self.memory_gb.values())
        if abs(total - 1) > 1e-9:
            raise ValueError(f"memory_gb: the shares sum to {total:g}, not 1")
        return self


class FrozenBase(Section):
    """The model under the baselines that do not train its weights (:data:`FROZEN_BASE`)."""

    bits: Literal[8, 16]


class Cost(Section):
    """The declared choices behind every modelled memory figure."""

    batch: Count
    tokens: Count
    bytes_per_weight: Literal[2, 4]
    optimizer: Literal["sgd", "adamw"]
    resident_layers: Count
    resident_blocks: Count
    device: Literal["nano", "tx2", "phone", "orin", "a100", "h100", "h200"]


class Evaluate(Section):
    """How accuracies are compared."""

    bootstrap_samples: Count
    interval: Fraction


class Features(Section):
    """What is read off single layers, for the figures that look inside (paper figures 9 and 10)."""

    task: str
    texts: Annotated[int, Field(ge=4)]
    points: Annotated[int, Field(ge=4)]
    pairs: list[tuple[str, str]] = Field(min_length=1)
    perplexity: Positive
    candidates: Count


class Figures(Section):
    """Looks only: editing this section redraws figures and runs nothing else."""

    names: list[str] = Field(min_length=1)
    width_inches: Positive
    font_points: Annotated[float, Field(ge=7)]
    dpi: Count


class Params(Section):
    """All of params.yaml."""

    study: Studies
    settings: dict[Name, dict[str, Any]]
    zoo: Zoo
    world: World
    tasks: Tasks
    partition: Partition
    blocks: Blocks
    sensitivity: Sensitivity
    quantize: Quantize
    swapper: Swapper
    swap: SwapStudy
    comparator: Comparator
    assembling: Assemblings
    federated: Federated
    baselines: Baselines
    tune: Tune
    frozen_base: FrozenBase
    fleet: Fleet
    cost: Cost
    evaluate: Evaluate
    features: Features
    figures: Figures

    @model_validator(mode="after")
    def _cross_checks(self) -> Params:
        if self.federated.clients_per_round > self.partition.clients:
            raise ValueError(
                f"federated.clients_per_round: {self.federated.clients_per_round} is more than "
                f"partition.clients ({self.partition.clients})"
            )
        if self.settings.get("base"):
            raise ValueError("settings.base: empty by definition; change the sections themselves")
        studies = {size: study for size in STUDIES if (study := getattr(self.study, size)) is not None}
        for study in studies.values():
            for methods in study.runs.values():
                for method in methods:
                    if method in ASSEMBLING:
                        self.assembling.of(method)
        if self.quantize.allocates and self.quantize.score not in self.sensitivity.scores:
            raise ValueError(f"quantize.score: {self.quantize.score!r} is not in sensitivity.scores")
        if self.quantize.needs_moments and not self.sensitivity.moments:
            raise ValueError("sensitivity.moments: false, but quantize.rounding: compensated takes them")
        for name in self.blocks.members or ():
            if name not in self.zoo.models:
                raise ValueError(f"blocks.members: {name!r} is not in zoo.models")
        if self.baselines.model not in self.zoo.models:
            raise ValueError(f"baselines.model: {self.baselines.model!r} is not in zoo.models")
        for paired in {name for pair in self.features.pairs for name in pair}:
            if paired not in self.zoo.models:
                raise ValueError(f"features.pairs: {paired!r} is not in zoo.models")
        used = {SHARES.get(m, m) for study in studies.values() for methods in study.runs.values() for m in methods}
        for task in self.tasks.names:
            for method in TUNED:
                if method in used and task not in getattr(self.baselines, method):
                    raise ValueError(f"baselines.{method}: no entry for {task}")
                for name in RATES if method in used else ():
                    rate = getattr(getattr(self.baselines, method)[task], name)
                    if isinstance(rate, dict) and self.baselines.model not in rate:
                        raise ValueError(f"baselines.{method}.{task}.{name}: none for {self.baselines.model!r}")
        if (self.tasks.source == "world") != (any(m.facets for m in self.zoo.models.values())):
            raise ValueError("tasks.source: 'world' goes with zoo members that know facets, and only with them")
        for name, member in self.zoo.models.items():
            if any(not 0 <= facet < self.world.facets for facet in member.facets):
                raise ValueError(f"zoo.models.{name}.facets: the world has facets 0 to {self.world.facets - 1}")
        for size, study in studies.items():
            for setting in study.runs:
                if setting not in self.settings:
                    raise ValueError(f"study.{size}.runs.{setting}: no such entry under settings")
            curve = study.precision
            if curve is not None:
                for setting in (curve.fitted_on, *curve.settings):
                    if setting not in self.settings:
                        raise ValueError(f"study.{size}.precision: no entry {setting!r} under settings")
                if curve.fitted_on not in curve.settings:
                    raise ValueError(f"study.{size}.precision.settings: {curve.fitted_on!r} itself is not among them")
                if not set(study.runs.get(curve.fitted_on, ())) & set(ASSEMBLING):
                    raise ValueError(f"study.{size}.precision.fitted_on: runs has no assembling method there")
        return self


SECTIONS: dict[str, Any] = {
    name: field.annotation for name, field in Params.model_fields.items() if name not in ("study", "settings")
}


# ------------------------------------------------------------------------------------------------- reading


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice (plain YAML keeps the last one silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ParamsError(f"{key}: not a key (line {key_node.start_mark.line + 1})")
            if key in seen:
                raise ParamsError(f"{key}: given twice (line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; a missing, broken or doubled key is one :class:`ParamsError` line."""
    try:
        text = read_text(path)
    except ArtifactError as error:
        raise ParamsError(str(error)) from None
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ParamsError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise ParamsError(f"{path}: a mapping of sections is expected")
    return value


def load(path: Path) -> Params:
    """Read and check a whole params.yaml, the overrides of every named setting included.

    Raises:
        ParamsError: one line naming the key at fault.
    """
    raw = read_yaml(path)
    params = validate(Params, raw)
    for setting in params.settings:
        try:
            with_setting(raw, setting)
        except ParamsError as error:
            raise ParamsError(f"settings.{setting}: {error}") from None
    return params


def with_setting(raw: dict[str, Any], setting: str) -> Params:
    """The params with one named setting's overrides (``{"partition.alpha": 0.1}``) applied."""
    merged = json.loads(json.dumps(raw))
    for dotted, value in (raw["settings"][setting] or {}).items():
        *parents, leaf = dotted.split(".")
        node = merged
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
            if node is None:
                raise ParamsError(f"{dotted}: no such key")
        if not isinstance(node, dict):
            raise ParamsError(f"{dotted}: no such key")
        node[leaf] = value  # a key with a default need not stand in the file; an unknown one is refused below
    return validate(Params, merged)


def setting_text(raw: dict[str, Any], setting: str, zoo_seed: int = 0) -> str:
    """A setting as canonical ``key=value`` text, sorted; ``""`` for the base setting on zoo 0."""
    pairs = dict(raw["settings"][setting] or {})
    if zoo_seed:
        pairs["zoo.seed"] = zoo_seed
    return " ".join(f"{key}={json.dumps(value, sort_keys=True)}" for key, value in sorted(pairs.items()))


def sections_json(params: Params, names: Iterable[str]) -> str:
    """The named sections as canonical JSON: what a stage gets, and what its re-runs depend on."""
    return json.dumps({name: getattr(params, name).model_dump(mode="json") for name in names}, sort_keys=True)


def parse_sections(text: str, names: Iterable[str]) -> Any:
    """Parse a stage's ``--params``: a namespace with exactly the named sections, typed.

    Raises:
        ParamsError: not JSON, a section missing or unexpected, or a value out of range.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ParamsError(f"--params: not JSON ({error})") from None
    names = tuple(names)
    if sorted(raw) != sorted(names):
        raise ParamsError(f"--params: sections {sorted(raw)} given, {sorted(names)} expected")
    return SimpleNamespace(**{name: validate(SECTIONS[name], raw[name], prefix=name) for name in names})


def params_sha(text: str) -> str:
    """Twelve hex digits that identify a stage's params JSON."""
    return sha256_text(text)[:12]


def validate(model: type[BaseModel], raw: Any, prefix: str = "") -> Any:
    """Validate, turning pydantic's report into one line that names the key."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(_one_line(model, raw, error, prefix)) from None


def _one_line(model: type[BaseModel], raw: Any, error: ValidationError, prefix: str) -> str:
    errors = error.errors(include_url=False)
    # a misspelt key is also a missing one: the first names both
    first = next((found for found in errors if found["type"] == "extra_forbidden"), errors[0])
    where = [str(part) for part in first["loc"]]
    key = ".".join([prefix, *where] if prefix else where)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(where[-1], _known_keys(model, where[:-1]))}{more}"
    if first["type"] == "missing":
        return f"{key}: missing{more}"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return f"{key}.{message}{more}" if key else f"{message}{more}"
    return f"{key}: {first['msg']} (got {first['input']!r}){more}"


def _known_keys(model: Any, path: list[str]) -> Iterable[str]:
    for part in path:
        fields = getattr(model, "model_fields", None)
        if fields is None or part not in fields:
            candidates = [a for a in getattr(model, "__args__", ()) if hasattr(a, "model_fields")]
            model = candidates[-1] if candidates else model
            continue
        model = fields[part].annotation
    return getattr(model, "model_fields", {})


def nearest(name: str, known: Iterable[str]) -> str:
    """Words to end a message with: which of the known names is meant, where one is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Params.model_json_schema()}
