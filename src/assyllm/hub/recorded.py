"""What is known of hub models and tasks without asking: ``recorded.json``, and how far each fact was checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from assyllm.artifacts import read_json

PATH = Path(__file__).with_name("recorded.json")


@dataclass(frozen=True, slots=True)
class Record:
    """A hub model as recorded; ``files`` are bytes by name where they were seen, else empty."""

    id: str
    revision: str
    licence: str
    licence_is: str  # seen | remembered
    gated: bool
    weights: str  # safetensors | bin
    bits: int  # of a stored weight
    files: dict[str, int]
    files_are: str  # seen | from the shape
    vocabulary: str  # the file that it is read from, or unknown
    config: dict[str, Any]


@cache
def _recorded() -> dict[str, Any]:
    return read_json(PATH)


def record_of(hub_id: str) -> Record | None:
    """What is recorded of a model, None if nothing is."""
    found = _recorded()["models"].get(hub_id)
    return None if found is None else Record(id=hub_id, **found)


def known() -> list[str]:
    """Ids of the recorded models."""
    return list(_recorded()["models"])


def task_licence(name: str) -> str:
    """Licence of a published task's dataset."""
    return str(_recorded()["task_licences"][name])
