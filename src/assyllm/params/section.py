"""What every section is made of: the base model, kinds of numbers, the error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from types import NoneType
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assyllm.artifacts import ArtifactError

Fraction = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]  # somebody must be left
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=100)]  # of learning
Count = Annotated[int, Field(ge=1)]
Group = Annotated[int, Field(ge=1, le=65_536)]  # weights that share a scale
Seed = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[\w.-]+$")]  # of a folder and a wildcard
MODEL_NAME = r"^[\w-]+$"
ModelName = Annotated[str, Field(pattern=MODEL_NAME)]  # and of a module, which may hold no dot


class ParamsError(ArtifactError):
    """A parameter is wrong; the message names its key."""


class Section(BaseModel):
    """A frozen group of parameters that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def changed(self, **values: Any) -> Self:
        """A copy with other values, checked as those of params.yaml are (``model_copy`` checks nothing).

        Raises:
            ParamsError: an unknown name, or a value that cannot be; one line that names it.
        """
        return validate(type(self), {**self.model_dump(), **values})


def nearest(name: str, known: Iterable[str]) -> str:
    """Words to end a message with: which of the known names is meant, where one is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def validate(model: type[BaseModel], raw: Any, prefix: str = "") -> Any:
    """Validate, turning pydantic's report into one line that names the key."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(_one_line(model, error, prefix)) from None


def _one_line(model: type[BaseModel], error: ValidationError, prefix: str) -> str:
    errors = error.errors(include_url=False)
    # a misspelt key is also a missing one: the first names both
    first = next((found for found in errors if found["type"] == "extra_forbidden"), None) or _deepest(errors)
    where = _keys(first["loc"])
    key = ".".join([prefix, *where] if prefix else where)
    keys = {tuple(_keys(found["loc"])) for found in errors}
    others = len({other for other in keys if other != tuple(where[: len(other)])})
    more = f" (and {others} more)" if others else ""
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(where[-1], _known_keys(model, where[:-1]))}{more}"
    if first["type"] == "missing":
        return f"{key}: missing{more}"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return f"{key}.{message}{more}" if key else f"{message}{more}"
    return f"{key}: {first['msg']} (got {first['input']!r}){more}"


def _keys(loc: tuple[int | str, ...]) -> list[str]:
    """A path as params.yaml has it: pydantic puts the kinds that a value may be of among the keys."""
    return [str(part) for part in loc if not (isinstance(part, str) and re.match(r"constrained-|\w+\[", part))]


def _deepest(errors: list[Any]) -> Any:
    """The first error; of a value that may be of several kinds, what is wrong inside the kind that it is of."""
    start = _keys(errors[0]["loc"])
    inside = [found for found in errors if _keys(found["loc"])[: len(start)] == start]
    return max(inside, key=lambda found: len(_keys(found["loc"])))


def _known_keys(kind: Any, path: list[str]) -> Iterable[str]:
    for part in path:
        kind = _given(kind)
        entries = get_args(kind)  # of a dict: its keys, its values
        kind = fields[part].annotation if (fields := _fields(kind)) else entries[-1] if entries else None
    return _fields(_given(kind))


def _fields(kind: Any) -> dict[str, Any]:
    return getattr(kind, "model_fields", {})


def _given(kind: Any) -> Any:
    """What stands where something does: without the None of an optional one."""
    return next((a for a in get_args(kind) if a is not NoneType), kind) if NoneType in get_args(kind) else kind
