"""Any transformers model under a byte budget.

::

    with under_budget("models/llama-7b", budget_bytes=4_000_000_000) as model:
        logits = model(ids).logits
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from assyllm.artifacts import MANIFEST, ArtifactError, read_json
from assyllm.blocks.families import FAMILIES, find
from assyllm.swapper.bind import Binding, Part, place_buffers
from assyllm.swapper.engine import Engine
from assyllm.swapper.memory import CudaMemory, HostMemory, Unit, place_of
from assyllm.swapper.reader import Reader
from assyllm.zoo.header import Entry
from assyllm.zoo.load import stored_tensors
from assyllm.zoo.weights import spellings


@contextmanager
def under_budget(
    folder: Path | str,
    budget_bytes: int,
    *,
    device: str = "cpu",
    host: str = "disk",
    preload: bool = True,
    preswap: bool = True,
    direct: bool | None = None,
    bytes_per_s: float | None = None,
    record: bool = False,
    policy: str = "plan",
) -> Iterator[Any]:
    """The model of a folder with its layers swapped; outputs are bit-equal to those of the whole model.

    Weights are as stored: what ``from_pretrained`` gives with the dtype of the files, which ``dtype="auto"`` is unless
    config.json names another. The model computes in eval mode; run
    it under ``torch.no_grad()``. The engine is ``model.swapper``.

    Args:
        folder: ``config.json`` and safetensors, in one file or sharded; sha256 are checked where it has a manifest.
        budget_bytes: bytes of weights in memory, read-ahead included.

    Raises:
        ArtifactError: not such a folder, weights that do not fit the config, or a budget too small.
    """
    folder = Path(folder)
    on = place_of(budget_bytes, device, host, bytes_per_s)
    stored = stored_tensors(folder)
    dtype = next((e.dtype for e in stored.values() if e.dtype.is_floating_point), torch.float32)
    model = _empty(folder, dtype)
    parts, units = _parts(model, stored, folder)
    files = {entry.file for entry in stored.values()}
    hashes = None
    if (folder / MANIFEST).is_file():
        listed = read_json(folder / MANIFEST).get("files", {})
        absent = [file.name for file in sorted(files) if "sha256" not in listed.get(file.name, {})]
        if absent:
            raise ArtifactError(f"{folder / MANIFEST}: no sha256 of {absent[0]} in it")
        hashes = {file: listed[file.name]["sha256"] for file in files}
    reader = Reader(files, hashes, direct, bytes_per_s)
    try:
        place: Any = HostMemory() if on.type == "cpu" else CudaMemory(on, units, reader, host)
        binding = Binding(parts)
        engine = Engine(
            units, place, reader, budget_bytes, [unit.id for unit in units],
            preload=preload, preswap=preswap, repeat=True, record=record, unbind=binding.unbind, policy=policy,
        )  # fmt: skip
    except BaseException:
        reader.close()
        raise
    binding.hook(engine.use)
    place_buffers(model, on)
    model.swapper = engine
    try:
        yield model
    finally:
        engine.close()


def _empty(folder: Path, dtype: torch.dtype) -> Any:
    import transformers
    from accelerate import init_empty_weights

    values = read_json(folder / "config.json")
    try:
        config = transformers.AutoConfig.for_model(**values)
        kind = getattr(transformers, values["architectures"][0])
        with init_empty_weights(include_buffers=False):
            model = kind._from_config(config, dtype=dtype)
    except Exception as error:
        raise ArtifactError(f"{folder / 'config.json'}: no model of transformers ({json.dumps(str(error))})") from None
    model.tie_weights()
    return model.eval().requires_grad_(False)


def layers_of(model: Any) -> tuple[str, nn.ModuleList]:
    """Path and list of a model's layers: where its family keeps them, else the largest list of modules."""
    spec = FAMILIES.get(model.config.model_type)
    path = f"{spec.trunk}.{spec.layers}" if spec is not None else ""
    found = find(model, path) if path else None
    if isinstance(found, nn.ModuleList):
        return path, found
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ArtifactError(f"{type(model).__name__}: no list of layers in it")
    return max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))


def _parts(model: Any, entries: dict[str, Entry], folder: Path) -> tuple[list[Part], list[Unit]]:
    """Units in the order of a forward pass: what stands before the layers, each layer, what stands after them."""
    path, layers = layers_of(model)
    order = ["before", *(str(i) for i in range(len(layers))), "after"]
    parts = {name: Part(f"model/{name}") for name in order}
    tensors: dict[str, dict[str, Entry]] = {name: {} for name in order}
    stored = _stored_names(model, entries)
    seen_layers = False
    for name, module in model.named_modules():
        seen_layers = seen_layers or name == path
        own = [*module._parameters, *(b for b in module._buffers if b not in module._non_persistent_buffers_set)]
        inside = name.startswith(f"{path}.")
        part = name[len(path) + 1 :].split(".")[0] if inside else "after" if seen_layers else "before"
        if inside and name == f"{path}.{part}":
            parts[part].doors.append(module)
        found = False
        for attribute in own:
            if (value := getattr(module, attribute)) is None or (not value.is_meta):
                continue
            full = f"{name}.{attribute}" if name else attribute
            if full not in stored:
                raise ArtifactError(f"{folder}: no weights called {full} in its files")
            if tuple(value.shape) != tuple(entries[stored[full]].shape):
                said = f"{list(entries[stored[full]].shape)} in its files, {list(value.shape)} by its config"
                raise ArtifactError(f"{folder}: {full} is {said}")
            if value.is_floating_point() and entries[stored[full]].dtype != value.dtype:
                said = f"{entries[stored[full]].dtype} in its files, others {value.dtype}"
                raise ArtifactError(f"{folder}: {full} is {said}; save the model in one dtype first")
            tensors[part][full] = entries[stored[full]]
            parts[part].slots[full] = [(module, attribute)]
            found = True
        if found and not inside:
            parts[part].doors.append(module)
    used = [name for name in order if tensors[name]]
    return [parts[name] for name in used], [Unit(parts[name].unit, tensors[name]) for name in used]


def _stored_names(model: Any, entries: dict[str, Entry]) -> dict[str, str]:
    """Name in the model -> name in the files; tied weights are stored once, under one of their names."""
    names: dict[int, list[str]] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        names.setdefault(id(tensor), []).append(name)
    found = {}
    prefix = getattr(model, "base_model_prefix", "")
    for alike in names.values():
        for name in alike:
            source = next((other for other in [name, *spellings(alike, prefix)] if other in entries), None)
            if source is not None:
                found[name] = source
    return found
