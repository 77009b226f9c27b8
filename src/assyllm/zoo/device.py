"""The device that someone names, for whatever takes one."""

from __future__ import annotations

import re

import torch

from assyllm.artifacts import ArtifactError
from assyllm.zoo.load import first_line


def device_of(name: str, key: str = "device") -> torch.device:
    """A device by torch's name for it: cpu, cuda, cuda:1.

    Args:
        key: what named it, for the message.

    Raises:
        ArtifactError: another kind, or there is no such device here.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ArtifactError(f"{key}: {name!r} is none of cpu, cuda, cuda:1 and so on")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ArtifactError(f"{key}: {name!r} is not to be had here ({first_line(error)})") from None
