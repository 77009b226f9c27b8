"""Sections ``comparator``, ``assembling`` and ``federated``: how blocks are assembled."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from assyllm.params.names import CONTROLS
from assyllm.params.section import Count, Fraction, ParamsError, Part, Positive, Rate, Section


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
    tuned: Literal["all", "projection"] = "all"
    tuning_rounds: Count = 40
    learning_rate: Rate = 0.01
    mismatch: Fraction = 0.1

    @property
    def fitted(self) -> bool:
        """Whether it begins as a projection that is fitted to states."""
        return self.kind != "fixed_attention"

    @property
    def trained(self) -> bool:
        """Whether rounds of tuning follow: of attention only, the other kinds are fitted in closed form."""
        return self.kind == "cross_attention" and self.tuning != "none"


class Selection(Section):
    """How the next block is chosen (paper sections 3.1 and 4.1)."""

    rule: Literal[
        "paper", "paper_distinct", "paper_other_model", "cka_only", "cor_only", "random",
        "survey", "survey_random", "survey_one_model", "probe", "probe_random", "probe_one_model",
    ]  # fmt: skip
    survey_rounds: Count | None = 6
    survey_dims: Count = 64
    evaluated_per_round: Count | None
    kept_per_round: Count
    beam: Count
    rounds_per_block: Count
    survivors: Annotated[float, Field(gt=0, le=1)] = 1.0
    least_answers: Fraction = 1.0
    vote: Literal["weighted", "median", "borda"] = "weighted"
    enter: Literal["adapter", "text", "both"] = "adapter"
    max_blocks: Annotated[int, Field(ge=2)]

    @property
    def by_labels(self) -> bool:
        """Whether the rule chooses by what blocks tell of the labels."""
        return self.rule.startswith(("survey", "probe"))

    @property
    def joins(self) -> bool:
        """Whether adapters may stand between blocks."""
        return not self.rule.startswith("survey") and self.enter != "text"

    @model_validator(mode="after")
    def _kept_fits(self) -> Selection:
        if self.evaluated_per_round is not None and self.kept_per_round > self.evaluated_per_round:
            raise ValueError(
                f"kept_per_round: {self.kept_per_round} is more than evaluated_per_round ({self.evaluated_per_round})"
            )
        if self.survivors < 1 and not self.by_labels:
            raise ValueError(f"survivors: {self.survivors} goes with a rule that reads labels, not with {self.rule}")
        if self.enter != "adapter" and not self.by_labels:
            raise ValueError(f"enter: {self.enter} goes with a rule that reads labels, not with {self.rule}")
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
    def _labels_tell_of_all_blocks(self) -> Assembling:
        if self.selection.by_labels and self.head.scope != "all_blocks":
            rule = self.selection.rule
            raise ValueError(
                f"head.scope: {self.head.scope} does not go with rule {rule}, whose gains are of all blocks"
            )
        if self.selection.rule.startswith("survey") and self.adapter.trained:
            raise ValueError(f"adapter.tuning: {self.adapter.tuning} does not go with a survey, which joins nothing")
        if self.selection.enter != "adapter" and self.adapter.trained:
            raise ValueError(
                f"adapter.tuning: {self.adapter.tuning} does not go with enter: {self.selection.enter}, "
                "as nothing joins a block that reads the text"
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
        base = found.selection.rule.removesuffix("_random").removesuffix("_one_model")
        varied = f"{base}_{rule}"
        if varied not in get_args(Selection.model_fields["rule"].annotation):
            raise ParamsError(
                f"assembling.{name}.selection.rule: {found.selection.rule} has no variant for {method}, "
                "as survey and probe have"
            )
        return found.model_copy(update={"selection": found.selection.model_copy(update={"rule": varied})})


class Federated(Section):
    """The round loop that every method shares."""

    clients_per_round: Count
    dropout: Part
    stragglers: Part
    liars: Fraction
    lie: Literal["votes", "sums"]
    row_norm: Annotated[float, Field(gt=0, le=1e6)] | None
    max_examples: Count | None
    least_clients: Count = 2
    check_sums: bool = False
