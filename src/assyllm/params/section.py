"""What every section is made of: the base model, kinds of numbers, the error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assyllm.artifacts import ArtifactError

Fraction = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]  # somebody must be left
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[\w.-]+$")]  # of a folder and a wildcard


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
        try:
            return type(self).model_validate({**self.model_dump(), **values})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            raise ParamsError(f"{key}: {first['msg']}" if key else first["msg"]) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Words to end a message with: which of the known names is meant, where one is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
