"""All sections together, and the checks across them."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from assyllm.params.assembling import Assemblings, Comparator, Federated
from assyllm.params.baselines import RATES, Baselines, FrozenBase, Tune
from assyllm.params.devices import Cost, Fleet
from assyllm.params.names import ASSEMBLING, SHARES, TUNED
from assyllm.params.pool import Blocks, Quantize, Sensitivity, Swapper, SwapStudy
from assyllm.params.section import Name, Section
from assyllm.params.studies import STUDIES, Studies
from assyllm.params.telling import Evaluate, Features, Figures
from assyllm.params.zoo import Partition, Tasks, World, Zoo


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
        for key in ("federated.clients_per_round", "partition.clients"):
            section, name = key.split(".")
            if self.federated.least_clients > (most := getattr(getattr(self, section), name)):
                raise ValueError(f"federated.least_clients: {self.federated.least_clients} is more than {key} ({most})")
        if self.comparator.shards > self.partition.clients:
            raise ValueError(
                f"comparator.shards: {self.comparator.shards} is more than partition.clients ({self.partition.clients})"
            )
        if self.settings.get("base"):
            raise ValueError("settings.base: empty by definition; change the sections themselves")
        studies = {size: study for size in STUDIES if (study := getattr(self.study, size)) is not None}
        for size, study in studies.items():
            if self.tune.seed in study.seeds:
                raise ValueError(f"tune.seed: {self.tune.seed} is a seed of study.{size}, which it must not be")
            for methods in study.runs.values():
                for method in methods:
                    if method in ASSEMBLING:
                        self.assembling.of(method)
        for score in self.quantize.scores_read:
            if score not in self.sensitivity.scores:
                key = "scheme: paper reads" if self.quantize.scheme == "paper" else "score:"
                raise ValueError(f"quantize.{key} {score!r}, which is not in sensitivity.scores")
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
        own = [name for name in self.zoo.models if self.zoo.source_of(name) == "embedded"]
        for task in self.tasks.names if own else ():
            if self.tasks.max_tokens[task] > self.zoo.pretrain.max_tokens:
                raise ValueError(
                    f"tasks.max_tokens.{task}: {self.tasks.max_tokens[task]} is more than the "
                    f"{self.zoo.pretrain.max_tokens} positions of {own[0]} (zoo.pretrain.max_tokens)"
                )
        for name, member in self.zoo.models.items():
            if any(not 0 <= facet < self.world.facets for facet in member.facets):
                raise ValueError(f"zoo.models.{name}.facets: the world has facets 0 to {self.world.facets - 1}")
            base = self.zoo.models.get(member.continued_from or "", member)
            if "vocabulary" in member.model_fields_set and member.vocabulary != base.vocabulary:
                raise ValueError(
                    f"zoo.models.{name}.vocabulary: {member.vocabulary}, but {member.continued_from}, which it "
                    f"continues and whose tokenizer it has, has {base.vocabulary}"
                )
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
