"""A quantized copy of a pool, and opening one so that its blocks compute from the weights as stored.

Packed at mixed precision are the weights of the linear layers inside the blocks' layers; embedding tables may be
packed at one width. Norms and biases stay at fp16. **All** of it counts in every byte figure and in the budget.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from assyllm.artifacts import ArtifactError, check_apart, manifest_sha, output_folder, read_json, verify_folder
from assyllm.blocks.block import Block
from assyllm.blocks.pool import POOL, BlockInfo, Pool, write_block, write_pool
from assyllm.params import Quantize
from assyllm.quantizer import allocate, backends
from assyllm.quantizer.calibrate import linears
from assyllm.quantizer.compensate import compensated
from assyllm.quantizer.packed import PackedEmbedding, PackedLinear
from assyllm.quantizer.planes import check_weight, nearest, pack
from assyllm.quantizer.sizes import matrix_bytes
from assyllm.zoo.header import Entry, header
from assyllm.zoo.weights import Give

MATRIX = "{}|{}"  # block id and path: a matrix's name in allocation
KEPT_BYTES = 1 << 28  # of float matrices beside the packed ones
TABLE_ROWS = 4096  # of an embedding table that are made float together


def quantize_pool(
    pool: Path, out: Path, settings: Quantize, sensitivity: Path | None = None, device: str = "cpu"
) -> None:
    """Write a quantized copy of a pool, a tensor at a time: never is a block held whole but in its packed form.

    Args:
        pool: folder of a pool as :mod:`assyllm.blocks.pool` writes it, not quantized yet.
        out: the new folder, written whole or not at all.
        sensitivity: folder of scores and moments (stage ``sensitivity``), where ``settings`` need them.
        device: where matrices are rounded and packed.

    Raises:
        ArtifactError: bad weights, a pool that is quantized already, a budget below the floor, or scores that are not
            there or of another pool.
    """
    pool, out, settings = Path(pool), Path(out), settings.changed()
    sensitivity = None if sensitivity is None else Path(sensitivity)
    check_apart(out, pool, *([sensitivity] if sensitivity is not None else []))
    source = Pool.open(pool)
    if any(source.info(block).group_size for block in source.ids):
        raise ArtifactError(f"{pool}: quantized already; give the pool that it was made of")
    raw = read_json(pool / POOL)
    if settings.needs_sensitivity:
        if sensitivity is None:
            raise ArtifactError(f"quantize.scheme: {settings.scheme} needs the folder of the stage `sensitivity`")
        verify_folder(sensitivity)
        if any(not (sensitivity / source.info(block).file).is_file() for block in source.ids):
            raise ArtifactError(f"{sensitivity}: measured on another pool than {pool}")
        with safe_open(sensitivity / source.info(source.ids[0]).file, "pt") as file:
            if (file.metadata() or {}).get("pool") != manifest_sha(pool):
                raise ArtifactError(f"{sensitivity}: measured on another pool than {pool}")
    widths = allocation(source, settings, sensitivity) if sensitivity is not None and settings.allocates else {}
    with output_folder(out, like=POOL) as folder:
        for name in raw["order"]:
            shutil.copytree(pool / "models" / name, folder / "models" / name)
            rows = []
            for old, info in zip(raw["models"][name]["blocks"], source.of_model(name), strict=True):
                block, mine = source.empty(info.id), _stored(sensitivity, info, settings)
                own = {path: widths.get(MATRIX.format(info.id, path)) for path in linears(block)}
                tensors = quantize_block(block, source.reads(info.id), settings, own, mine, device)
                row = write_block(folder, info.file, tensors)
                row["bits"] = _bits(row["bytes"], info.parameters, settings)
                row |= {"parameters": info.parameters, "layers": old["layers"], "group_size": settings.group_size}
                rows.append(row)
            raw["models"][name]["blocks"] = rows
        write_pool(folder, {name: raw["models"][name] for name in raw["order"]})


def _bits(size: int, parameters: int, settings: Quantize) -> float:
    """Bits a weight for ``pool.json``: the nominal ones of a uniform pool, else the block's own, all included."""
    return settings.bits if settings.scheme == "uniform" else round(8 * size / parameters, 3)


def _stored(sensitivity: Path | None, info: BlockInfo, settings: Quantize) -> Mapping[str, Entry]:
    """A block's scores and moments, to be read one at a time: an edge block's take 7 to 11 GB at 7 billion weights."""
    if sensitivity is None or not settings.needs_sensitivity:
        return {}
    return header(sensitivity / info.file)


def allocation(source: Pool, settings: Quantize, sensitivity: Path) -> dict[str, Tensor]:
    """Widths of the rows of every matrix of the pool, by ``block|path``, within the budget of the whole pool."""
    widths = settings.widths_used
    matrices: dict[str, allocate.Matrix] = {}
    scores: dict[str, dict[str, Tensor]] = {name: {} for name in settings.scores_read}
    fixed = weights = 0
    for block_id in source.ids:
        info, block, read = source.info(block_id), source.empty(block_id), source.reads(block_id)
        stored = _stored(sensitivity, info, settings)
        for path, linear in linears(block).items():
            name = MATRIX.format(block_id, path)
            weight = check_weight(read(f"{path}.weight"), f"block {block_id}: {path}")
            if settings.scheme == "paper":
                for score in settings.scores_read:
                    scores[score][name] = _score(stored, score, path, block_id)
                scores["masking"][name] = scores["masking"][name] * weight.pow(2).sum(1)
            errors = allocate.rounding_errors(weight, widths, settings.group_size)
            importance = _score(stored, settings.scores_read[-1], path, block_id)
            matrices[name] = allocate.Matrix(importance, errors, linear.in_features)
        fixed += sum(t.nbytes for t in _rest(block, read, settings).values())
        weights += info.parameters
    budget = int(settings.budget_bits * weights / 8)
    try:
        if settings.scheme == "paper":
            columns = {name: matrix.columns for name, matrix in matrices.items()}
            quantiles = (settings.sparsity_quantile, settings.output_quantile)
            return allocate.two_thresholds(scores, columns, settings.group_size, budget - fixed, *quantiles)
        whole = settings.scheme == "layerwise"
        return allocate.knapsack(matrices, widths, settings.group_size, budget - fixed, whole)
    except ArtifactError:
        size = sum(
            matrix_bytes({widths[0]: len(m.importance)}, m.columns, settings.group_size) for m in matrices.values()
        )
        floor = 8 * (fixed + size) / weights
        raise ArtifactError(
            f"quantize.budget_bits: {settings.budget_bits:g} is below the floor of {floor:.3f} bits a weight "
            f"(every linear weight at {widths[0]} bits, the rest of the pool takes {8 * fixed / weights:.3f})"
        ) from None


def _score(stored: Mapping[str, Entry], score: str, path: str, block: str) -> Tensor:
    if f"{score}|{path}" not in stored:
        raise ArtifactError(f"block {block}: no score {score!r}; add it to sensitivity.scores")
    return stored[f"{score}|{path}"].read()


def _rest(block: Block, read: Give, settings: Quantize, device: str = "cpu") -> dict[str, Tensor]:
    """What is not a linear layer's weight, as it goes to disk: embeddings as set, the others at fp16."""
    tables, matrices = tables_of(block), {f"{path}.weight" for path in linears(block)}
    out: dict[str, Tensor] = {}
    for name in block.state_dict():
        path = name.removesuffix(".weight")
        if name in matrices:
            continue
        tensor = read(name)
        if path in tables and settings.embedding_bits < 16:
            packed = _table(tensor, settings, f"block {block.id}: {name}", device)
            out |= {f"{path}.{part}": value for part, value in packed.items()}
        elif tensor.is_floating_point():
            out[name] = check_weight(tensor, f"block {block.id}: {name}").half()
        else:
            out[name] = tensor
    return out


def _table(tensor: Tensor, settings: Quantize, name: str, device: str) -> dict[str, Tensor]:
    """An embedding table packed at one width, some rows at a time."""
    parts = []
    for rows in tensor.split(TABLE_ROWS):
        weight = check_weight(rows.to(device), name)
        widths = torch.full((len(weight),), settings.embedding_bits, dtype=torch.uint8, device=device)
        parts.append(pack(*nearest(weight, widths, settings.group_size), weight, widths))
    return {part: torch.cat([packed[part].cpu() for packed in parts]) for part in parts[0]}


def quantize_block(
    block: Block,
    read: Give,
    settings: Quantize,
    widths: Mapping[str, Tensor | None],
    stored: Mapping[str, Entry],
    device: str = "cpu",
) -> dict[str, Tensor]:
    """A block's tensors as they go to disk.

    Args:
        block: its layout; its own weights are not read.
        read: gives the block's tensors, one at a time.
        widths: of each linear layer's rows; None: ``settings.bits`` for all.
        stored: the block's scores and moments, where rounding is compensated.
    """
    out = _rest(block, read, settings, device)
    for path in linears(block):
        weight = check_weight(read(f"{path}.weight").to(device), f"block {block.id}: {path}.weight")
        if settings.scheme in backends.BACKENDS:
            packed = backends.encode(weight, settings.scheme)
        elif settings.scheme == "uniform" and settings.bits == 16:
            out[f"{path}.weight"] = weight.half().cpu()
            continue
        else:
            own = widths.get(path)
            if own is None:
                own = torch.full((weight.shape[0],), settings.bits, dtype=torch.uint8)
            own = own.to(device)
            if settings.rounding == "compensated":
                moments = stored.get(f"moments|{path}")
                if moments is None:
                    raise ArtifactError(f"block {block.id}: no moments of {path}; set sensitivity.moments")
                integers = compensated(weight, own, settings.group_size, moments.read().to(device))
            else:
                integers = nearest(weight, own, settings.group_size)
            packed = pack(*integers, weight, own)
        out |= {f"{path}.{name}": tensor.cpu() for name, tensor in packed.items()}
    return out


def open_pool(folder: Path, keep: bool = False) -> Pool:
    """Open a pool, quantized or not, so that its blocks compute from the weights as stored.

    Args:
        keep: make packed matrices float once and not at every pass, if those of the whole pool take no more than
            :data:`KEPT_BYTES`: for the simulator, which passes through small blocks thousands of times. The same bits.

    Raises:
        ArtifactError: a file is missing, truncated or altered.
    """
    opened = Pool.open(folder, prepare)
    if keep and 4 * sum(opened.info(block).parameters for block in opened.ids) <= KEPT_BYTES:
        opened = Pool(folder, partial(prepare, keep=True))
    return opened


def prepare(block: Block, info: BlockInfo, tensors: dict[str, Tensor], keep: bool = False) -> None:
    """Put layers that compute from packed weights where the block's file holds such (in place)."""
    for path, linear in linears(block).items():
        if f"{path}.widths" in tensors:
            counts = _counts(tensors[f"{path}.widths"])
            bias = linear.bias is not None
            packed = PackedLinear(counts, linear.in_features, info.group_size, bias, device="meta")
            packed.keeps = keep
            block.set_submodule(path, packed)
        elif (layer := backends.layer_for(tensors, path, linear)) is not None:
            block.set_submodule(path, layer)
    for path, table in tables_of(block).items():
        if f"{path}.widths" in tensors:
            (width,) = _counts(tensors[f"{path}.widths"])
            size = (table.num_embeddings, table.embedding_dim)
            block.set_submodule(path, PackedEmbedding(width, *size, info.group_size, device="meta"))


def _counts(widths: Tensor) -> dict[int, int]:
    found, counts = widths.unique(return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def tables_of(block: Block) -> dict[str, nn.Embedding]:
    """A start block's plain embedding tables, by their path in the block (OPT's own positions are not one)."""
    found: Iterator[tuple[str, nn.Module]] = block.embed.named_modules()
    return {f"embed.{path}": module for path, module in found if type(module) is nn.Embedding}
