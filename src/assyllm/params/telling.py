"""Sections ``evaluate``, ``features`` and ``figures``: what is told of the runs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from assyllm.params.section import Count, Positive, Section


class Evaluate(Section):
    """How accuracies are compared."""

    bootstrap_samples: Annotated[int, Field(ge=100)]
    interval: Annotated[float, Field(gt=0, lt=1)]


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
    width_inches: Annotated[float, Field(ge=1, le=40)]
    font_points: Annotated[float, Field(ge=7, le=40)]
    dpi: Annotated[int, Field(ge=36, le=2400)]
