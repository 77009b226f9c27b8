"""A zoo member small enough to send: its matrices as packed integers, and back into a folder that any loader reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from assyllm.artifacts import MANIFEST, ArtifactError, check_apart, output_folder, verify_folder
from assyllm.quantizer.planes import NAMES, Layout, check_weight, nearest, pack
from assyllm.quantizer.sizes import WIDTHS
from assyllm.zoo.load import WEIGHTS, stored_tensors

PACKED = "packed.safetensors"
GROUP = 128  # weights that share a scale: 8.13 bits a weight at 8
COLUMNS = "columns"  # of the file's metadata: the width of every packed matrix
PART = "{}|{}"  # a packed tensor's name: its matrix's, and its own (quantizer.planes)


def export(folder: Path, out: Path, bits: int = 8) -> int:
    """Write a member's folder with its matrices rounded to ``bits``; returns the bytes of its weights.

    Raises:
        ArtifactError: weights that are missing, damaged or not finite, ``bits`` without a packing, or ``out`` is
            something else.
    """
    folder = Path(folder)
    if bits not in WIDTHS[1:]:
        raise ArtifactError(f"bits: {bits} have no packing; {', '.join(map(str, WIDTHS[1:]))} have")
    check_apart(out, folder)
    packed: dict[str, Tensor] = {}
    columns: dict[str, int] = {}
    for name, entry in stored_tensors(folder).items():
        weight = check_weight(entry.read(), f"{folder}: {name}")
        if weight.dim() != 2:
            packed[name] = weight.half()
            continue
        widths = torch.full((len(weight),), bits, dtype=torch.uint8)
        columns[name] = weight.shape[1]
        for part, value in pack(*nearest(weight, widths, GROUP), weight, widths).items():
            packed[PART.format(name, part)] = value.contiguous()
    with output_folder(out, like=PACKED) as made:
        _copy_rest(folder, made)
        # one entry: safetensors writes several in any order
        save_file(packed, made / PACKED, metadata={COLUMNS: json.dumps(columns, sort_keys=True)})
    return sum(tensor.nbytes for tensor in packed.values())


def restore(folder: Path, out: Path) -> None:
    """Write an exported member as a transformers folder; its float32 weights are exactly the packed ones.

    Raises:
        ArtifactError: the folder is not an export, or was altered; or ``out`` is something else than a model.
    """
    folder = Path(folder)
    check_apart(out, folder)
    verify_folder(folder)
    if not (folder / PACKED).is_file():
        raise ArtifactError(f"{folder / PACKED}: no such file; this is no exported member")
    with safe_open(folder / PACKED, framework="pt") as opened:
        names, told = set(opened.keys()), (opened.metadata() or {}).get(COLUMNS)
        if told is None:
            raise ArtifactError(f"{folder / PACKED}: an export of an earlier form; export the member again")
        columns = json.loads(told)
        weights = {name: opened.get_tensor(name).float() for name in names if "|" not in name}
        for name, number in columns.items():
            held = {part: PART.format(name, part) for part in NAMES}
            parts = {part: opened.get_tensor(key) for part, key in held.items() if key in names}
            rows, width = len(parts["widths"]), int(parts["widths"][0])
            weights[name] = Layout({width: rows}, number, GROUP).rows_of(parts, 0, rows, torch.float32)
    with output_folder(out, like=WEIGHTS) as made:
        _copy_rest(folder, made)
        save_file(weights, made / WEIGHTS, metadata={"format": "pt"})


def _copy_rest(folder: Path, out: Path) -> None:
    """Config, tokenizer and card."""
    for file in sorted(folder.glob("*.json")):
        if file.name != MANIFEST and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
