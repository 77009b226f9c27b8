"""The state of a run after a round, as one safetensors file that is whole or absent.

The file's header holds the run's key (a sha of its params, code and inputs) and its JSON state; a file with
another key, or one that cannot be read, counts as no checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assyllm.artifacts import write_bytes

if TYPE_CHECKING:
    from torch import Tensor


class Checkpoint:
    """``<folder>/<name>.safetensors`` for the run that ``key`` names; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, name: str, key: str) -> None:
        self.path = None if folder is None else Path(folder) / f"{name}.safetensors"
        self.key = key

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Replace the checkpoint; a kill at any moment leaves the old one or the new one."""
        if self.path is None:
            return
        from safetensors.torch import save

        header = {"key": self.key, "state": json.dumps(state, sort_keys=True)}
        write_bytes(self.path, save({name: t.clone().contiguous() for name, t in tensors.items()}, metadata=header))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of the last save under the same key, or None."""
        if self.path is None or not self.path.is_file():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("key") != self.key:
                    return None
                names = list(file.keys())
                return {name: file.get_tensor(name).clone() for name in names}, json.loads(header["state"])
        except (SafetensorError, OSError, ValueError, KeyError):
            return None
