"""A method's name to what one step of it is on a device, at any shape and reading."""

from __future__ import annotations

from typing import Any

from assyllm.artifacts import ArtifactError
from assyllm.baselines.registry import METHODS
from assyllm.cost.selection import Residency, scoring_step
from assyllm.cost.step import Reading, Step, gradient_step

ASSEMBLING = ("assyllm_paper", "assyllm")


def step_of(
    method: str, config: dict[str, Any], reading: Reading, residency: Residency | None = None, device: str = "cpu"
) -> Step:
    """One step of ``method`` on a model of a hub config, ready to be measured or run.

    Args:
        residency: of the methods that keep a few blocks in memory.

    Raises:
        ArtifactError: the method is not known here.
    """
    if method in ASSEMBLING:
        return scoring_step(config, reading, residency or Residency(), device)
    if method in METHODS:
        return gradient_step(method, config, reading, device)
    raise ArtifactError(f"no cost model for method {method!r}; known: {', '.join([*METHODS, *ASSEMBLING])}")
