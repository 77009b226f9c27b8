"""The card of a zoo member: where it comes from, what it stands for, what it knows; ``card.json`` beside it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assyllm.artifacts import ArtifactError, read_json, write_json

CARD = "card.json"


class ModelCard(BaseModel):
    """What a reader, and every later stage, may know of a member without loading it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str = Field(description="name in the zoo")
    family: str = Field(description="llama, opt, bert or roberta")
    stands_for: str = Field(description="the real model whose shape decides memory and participation")
    source: str = Field(description="embedded, local, hub or random")
    origin: str = Field(description="hub id, folder or corpus that it comes from")
    revision: str | None = Field(default=None, description="commit on the hub")
    licence: str = Field(description="licence of the weights; an assembled model takes the strictest")
    parameters: int = Field(description="number of weights")
    weights_sha256: str = Field(description="of model.safetensors (of all shards, one after the other)")
    seed: int | None = Field(default=None, description="seed of the zoo, if pre-trained here")
    continued_from: str | None = Field(default=None, description="member whose weights it started from")
    steps: int | None = Field(default=None, description="optimizer steps, if pre-trained here")
    held_out_loss: float | None = Field(default=None, description="nats a predicted token on unread rows")
    knowledge: list[str] = Field(default_factory=list, description="facets of the world that it has read about")
    known_facts: dict[str, float] = Field(
        default_factory=dict, description="accuracy on facts that it has read, by form of question"
    )
    exceptions: list[str] = Field(default_factory=list, description="forms on which known_facts is below .85")


def write_card(folder: Path, card: ModelCard) -> None:
    """Write ``card.json`` into a member's folder."""
    write_json(Path(folder) / CARD, card.model_dump(mode="json"))


def read_card(folder: Path) -> ModelCard:
    """Read a member's card.

    Raises:
        ArtifactError: missing or not a card; one line with the path.
    """
    path = Path(folder) / CARD
    try:
        return ModelCard.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ArtifactError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
