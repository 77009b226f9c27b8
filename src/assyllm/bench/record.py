"""What every benchmark writes: ratios by name, each with median, minimum and maximum over its rounds. No torch."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from assyllm.artifacts import write_json


@dataclass(frozen=True, slots=True)
class Ratio:
    """One ratio over the rounds of a benchmark."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio:
        """The ratio's values, one a round (at least one)."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Record:
    """A benchmark's result: ``{name, machine, rounds, ratios: {key: {median, min, max}}}``."""

    name: str
    machine: str
    rounds: int
    ratios: Mapping[str, Ratio]

    @classmethod
    def of(cls, name: str, rounds: Sequence[Mapping[str, float]]) -> Record:
        """A record of the ratios measured in each round; every round has the same keys."""
        ratios = {key: Ratio.of([each[key] for each in rounds]) for key in rounds[0]}
        return cls(name, machine(), len(rounds), ratios)

    def write(self, path: Path) -> None:
        """Write the JSON whole or not at all."""
        write_json(path, asdict(self))


def machine() -> str:
    """The machine in words: processor, cores that this process may use, system."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {platform.system()} {platform.release()}"
