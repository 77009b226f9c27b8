"""Safetensors files one tensor at a time: a model of 7 billion weights is split on a machine that cannot hold it.

Files written here have the bytes that safetensors itself would write (it needs all tensors at once, and copies them).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from assyllm.artifacts import ArtifactError
from assyllm.zoo.header import KINDS, Entry
from assyllm.zoo.load import stored_tensors

Give = Callable[[str], Tensor]


def write(file: Path, kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], give: Give) -> None:
    """Write tensors of known dtypes and shapes; ``give`` is asked for each once, in the file's order."""
    known = {getattr(torch, theirs): name for name, (theirs, _) in KINDS.items()}
    ranks = list(known)
    order = sorted(kinds, key=lambda name: (ranks.index(kinds[name][0]), name))
    entries: dict[str, Any] = {}
    end = 0
    for name in order:
        dtype, shape = kinds[name]
        begin, end = end, end + dtype.itemsize * int(torch.Size(shape).numel())
        entries[name] = {"dtype": known[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = give(name).detach().cpu().contiguous()
            if (tensor.dtype, tuple(tensor.shape)) != kinds[name]:
                raise ArtifactError(f"{file}: {name} is {tensor.dtype} {list(tensor.shape)}, not as announced")
            handle.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def named(module: nn.Module) -> dict[str, Tensor]:
    """What a module's ``state_dict`` would hold, as the very tensors (tied ones under each of their names)."""
    wanted = module.state_dict().keys()
    pairs: Iterable[tuple[str, Tensor]] = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    found = dict(pairs)
    return {name: found[name] for name in wanted}


def spellings(names: Iterable[str], prefix: str) -> list[str]:
    """How files may call a tensor that a model calls ``names``: also without the base model's prefix, and layer norms
    by their first names (gamma, beta)."""
    found = [spelled for name in names for spelled in (name, name.removeprefix(f"{prefix}."))]
    old = (
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for name in found
    )
    return list(dict.fromkeys([*found, *old]))


class Source:
    """The weights of a transformers folder by the model's own tensors, read one at a time.

    Args:
        folder: config and safetensors, in one file or in shards.
        model: the folder's language model on the meta device, its weights tied as its config says.
        whole: loads the folder's model; called only where its files name weights in another way.
    """

    def __init__(self, folder: Path, model: nn.Module, whole: Callable[[], nn.Module]) -> None:
        kept = stored_tensors(folder)
        prefix = getattr(model, "base_model_prefix", "")
        names: dict[int, list[str]] = {}
        for name, tensor in named(model).items():
            names.setdefault(id(tensor), []).append(name)
        self._kept: dict[int, Entry] = {}
        self._loaded: dict[int, Tensor] = {}
        for key, alike in names.items():
            found = next((kept[name] for name in spellings(alike, prefix) if name in kept), None)
            if found is None:
                loaded = named(whole())
                self._loaded = {other: loaded[names[other][0]] for other in names}
                return
            self._kept[key] = found

    def kind(self, tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
        """The dtype and shape in which a tensor of the model is stored."""
        found = self._loaded.get(id(tensor)) if self._loaded else self._kept[id(tensor)]
        assert found is not None
        return found.dtype, tuple(found.shape)

    def read(self, tensor: Tensor) -> Tensor:
        """The stored values of a tensor of the model."""
        return self._loaded[id(tensor)] if self._loaded else self._kept[id(tensor)].read()
