"""Section ``study``: what is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from assyllm.params.names import Method
from assyllm.params.section import Section, Seed

STUDIES = ("default", "full", "zoos", "worlds", "choosing", "ablations", "non_iid", "dropouts", "check")


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

    @model_validator(mode="after")
    def _once(self) -> Study:
        lists: dict[str, Sequence[object]] = {"seeds": self.seeds, "zoo_seeds": self.zoo_seeds}
        lists |= {f"runs.{setting}": methods for setting, methods in self.runs.items()}
        for key, values in lists.items():
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{key}: {value} stands there twice")
        return self


class Studies(Section):
    """What can be run: `snakemake`, and `snakemake <name>` of another study."""

    default: Study
    full: Study | None = None
    zoos: Study | None = None
    worlds: Study | None = None
    choosing: Study | None = None
    ablations: Study | None = None
    non_iid: Study | None = None
    dropouts: Study | None = None
    check: Study | None = None
