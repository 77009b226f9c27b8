"""The device that someone names, for the components that take one."""

from __future__ import annotations

import torch

from assyllm.artifacts import ArtifactError
from assyllm.zoo.load import first_line


def device_of(name: str) -> torch.device:
    """A device as torch names it (cpu, cuda, cuda:1).

    Raises:
        ArtifactError: there is no such device here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ArtifactError(f"device: {name!r} is not to be had here ({first_line(error)})") from None
