"""Sections ``blocks``, ``sensitivity``, ``quantize``, ``swapper`` and ``swap``: the pool of blocks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from assyllm.params.section import Count, Fraction, Group, Positive, Section
from assyllm.params.zoo import Member, Zoo


class Blocks(Section):
    """Where a model is cut into blocks (paper section 4.1)."""

    members: Annotated[list[str], Field(min_length=1)] | None = None
    edge_to_middle: Annotated[float, Field(ge=1, le=100)]
    blocks_per_model: Annotated[int, Field(ge=2)] | None

    def cut(self, zoo: Zoo) -> dict[str, Member]:
        """The members of the zoo that the pool is of, by name."""
        return {name: member for name, member in zoo.models.items() if self.members is None or name in self.members}


Width = Literal[0, 2, 3, 4, 5, 6, 7, 8, 16]
Score = Literal["sparsity", "noise", "masking", "output", "correlation", "replaced"]
PAPER_SCORES = ("sparsity", "masking", "correlation")  # the paper's rule: two thresholds, and a rank


class Sensitivity(Section):
    """What is learnt of the blocks' weights before quantizing, from the server's public text."""

    scores: list[Score] = Field(min_length=1)
    group_size: Group
    texts: Count
    probes: Count
    moments: bool


class Quantize(Section):
    """Precision of the pool's weights (paper section 3.4)."""

    scheme: Literal["uniform", "mixed", "layerwise", "paper", "nf4", "llm_int8"]
    bits: Literal[3, 4, 8, 16]
    budget_bits: Annotated[float, Field(gt=0, le=16)]
    widths: list[Width] = Field(min_length=1)
    score: Score
    rounding: Literal["nearest", "compensated"]
    group_size: Group
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
    def scores_read(self) -> tuple[str, ...]:
        """The scores of rows that allocation reads, the one that ranks them last; the paper's rule has three."""
        return PAPER_SCORES if self.scheme == "paper" else (self.score,) if self.allocates else ()

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
        """Bits a weight in memory, scales included: of a uniform pool below 16 bits a 16-bit one a group."""
        uniform = self.bits + (16 / self.group_size if self.bits < 16 else 0)
        return {"uniform": uniform, "nf4": 4.5, "llm_int8": 8.0}.get(self.scheme, self.budget_bits)

    @model_validator(mode="after")
    def _ascending(self) -> Quantize:
        if self.widths != sorted(set(self.widths)):
            raise ValueError(f"widths: {self.widths} are not ascending, each once")
        return self


# what a stage is given that reads no weight of the pool
UNQUANTIZED = Quantize(
    scheme="uniform", bits=16, budget_bits=16.0, widths=[16], score="noise", rounding="nearest", group_size=1,
    embedding_bits=16, sparsity_quantile=0.0, output_quantile=0.0,
)  # fmt: skip


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
    storage_mb_per_s: Annotated[float, Field(ge=1, le=1e6)]
    budget_shares: list[Annotated[float, Field(gt=0, le=1)]] = Field(min_length=1)
    passes: Annotated[int, Field(ge=2)]
