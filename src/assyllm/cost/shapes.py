"""Shapes of the real models that the zoo's members stand for, from their hub configs."""

from __future__ import annotations

from dataclasses import dataclass

from assyllm.artifacts import ArtifactError


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer's shape; ``intermediate`` is the MLP's inner width, ``positions`` learned ones."""

    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    positions: int = 0
    token_types: int = 0
    tied: bool = True

    @property
    def layer_parameters(self) -> int:
        """Weights and biases of one layer."""
        h, f = self.hidden, self.intermediate
        if self.family == "llama":  # four projections, gated MLP, two RMS norms, no biases
            return 4 * h * h + 3 * h * f + 2 * h
        return 4 * h * h + 4 * h + 2 * h * f + h + f + 4 * h  # biases everywhere, two layer norms

    @property
    def embedding_parameters(self) -> int:
        """Token, position and type embeddings, and the output matrix where it is not tied."""
        rows = self.vocabulary * (1 if self.tied else 2) + self.positions + self.token_types
        return rows * self.hidden

    @property
    def parameters(self) -> int:
        """All weights of the backbone: embeddings, layers and the norm outside the layers."""
        norm = self.hidden if self.family == "llama" else 2 * self.hidden
        return self.embedding_parameters + self.layers * self.layer_parameters + norm


SHAPES = {
    "llama-7b": Shape("llama", 4096, 11008, 32, 32, 32000, tied=False),
    "vicuna-7b": Shape("llama", 4096, 11008, 32, 32, 32000, tied=False),
    "opt-6.7b": Shape("opt", 4096, 16384, 32, 32, 50272, positions=2050),
    "bert-base": Shape("bert", 768, 3072, 12, 12, 30522, positions=512, token_types=2),
    "roberta-large": Shape("roberta", 1024, 4096, 24, 16, 50265, positions=514, token_types=1),
}


def shape_of(stands_for: str) -> Shape:
    """The shape called ``stands_for``; an unknown name raises :class:`ArtifactError`."""
    if stands_for not in SHAPES:
        raise ArtifactError(f"no shape called {stands_for!r}; known: {', '.join(SHAPES)}")
    return SHAPES[stands_for]
