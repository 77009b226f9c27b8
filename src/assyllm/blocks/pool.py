"""The pool on disk: every block of every model as safetensors, under one sha256 manifest.

::

    pool.json                          models and blocks: family, licence, widths, files, bytes, bits
    blocks/<model>_<first>-<last>.safetensors
    models/<model>/                    config.json, tokenizer, card.json, head.safetensors (LM head)
    manifest.json                      sha256 of every file above, checked once when the pool is opened

All weights that a block computes with are in its file; ``bytes`` are its tensors' bytes on disk.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from assyllm.artifacts import (
    ArtifactError,
    check_apart,
    output_folder,
    read_json,
    sha256_file,
    verify_folder,
    write_json,
)
from assyllm.blocks.block import Block, Kind, block_id, kind_of
from assyllm.blocks.embedding import PREFIX, Embedding, load_embedding
from assyllm.blocks.families import family as family_of
from assyllm.blocks.families import find
from assyllm.blocks.segment import segments
from assyllm.blocks.split import empty_block, head_of, split
from assyllm.params import MODEL_NAME, Blocks
from assyllm.zoo.cards import CARD, read_card
from assyllm.zoo.header import header
from assyllm.zoo.load import load_config, load_model, load_tokenizer
from assyllm.zoo.weights import Give, Source, named, write

POOL = "pool.json"
HEAD = "head.safetensors"
MODEL_FILES = (
    "config.json",
    "card.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)

Prepare = Callable[[Block, "BlockInfo", dict[str, Tensor]], None]


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """What is known of a block without loading it."""

    id: str
    model: str
    family: str
    kind: Kind
    layers: tuple[int, int]
    width: int
    causal: bool
    file: str
    bytes: int
    parameters: int
    bits: float  # nominal where uniform, else a weight's share of all the block's bits
    group_size: int  # weights that share a scale; 0 where nothing is packed


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a zoo member that the pool was made from."""

    name: str
    family: str
    stands_for: str
    licence: str
    revision: str
    width: int
    layers: int


def make_pool(folders: Mapping[str, Path], out: Path, blocks: Blocks) -> None:
    """A pool of models that one has, outside of any study: what the stage ``split`` does for a zoo.

    Args:
        folders: name -> a transformers folder of Llama, OPT, BERT or RoBERTa with its language head. A ``card.json``
            in it says its licence and what it stands for; without one the licence is unknown.
        out: the new folder, written whole or not at all.

    Raises:
        ArtifactError: a name that is none, a folder that lacks a file, or a family that this project does not know.
    """
    if not folders:
        raise ArtifactError("a pool of no models")
    if wrong := [name for name in folders if not re.fullmatch(MODEL_NAME, name)]:
        raise ArtifactError(f"{wrong[0]!r}: no name of a model; letters, digits, _ and - make one")
    check_apart(out, *folders.values())
    for folder in folders.values():
        load_tokenizer(Path(folder))  # what is wrong with it is said before anything is made
    with output_folder(out, like=POOL) as made:
        write_pool(
            made, {n: write_model(made, n, load_config(f).model_type, Path(f), blocks) for n, f in folders.items()}
        )


def write_model(out: Path, name: str, family: str, folder: Path, blocks: Blocks) -> dict:
    """Split one zoo member into block files under ``out``; returns its part of ``pool.json``.

    The model is never held whole: its modules are on the meta device, and weights go from file to file one by one,
    as they are stored.

    Args:
        folder: the zoo member's folder; its config, tokenizer and card are copied.

    Raises:
        ArtifactError: files missing or damaged, or a model of another family.
    """
    spec = family_of(family)
    config = load_config(folder)
    if config.model_type != family:
        raise ArtifactError(f"zoo.models.{name}.family: {family}, but {folder} holds a {config.model_type}")
    model: Any = spec.build(config)
    model.tie_weights()
    source = Source(folder, model, lambda: load_model(folder))
    total = int(config.num_hidden_layers)
    rows = []
    for block in split(model, name, family, segments(total, blocks)):
        file = f"blocks/{name}_{block.layers[0]}-{block.layers[1]}.safetensors"
        rows.append(_write(out, file, named(block), source) | {"layers": list(block.layers)})
    own = out / "models" / name
    own.mkdir(parents=True, exist_ok=True)
    for file in MODEL_FILES:
        if (folder / file).is_file():
            shutil.copyfile(folder / file, own / file)
    head, tied = _head(model, family)
    written = _write(out, f"models/{name}/{HEAD}", head, source)
    card = read_card(folder) if (folder / CARD).is_file() else None
    return {
        "family": family,
        "stands_for": card.stands_for if card else name,
        "licence": card.licence if card else "unknown",
        "revision": (card.revision if card else "") or "",
        "width": int(config.hidden_size),
        "layers": total,
        "head_bytes": written["bytes"],
        "tied": tied,
        "blocks": rows,
    }


def _write(out: Path, file: str, tensors: dict[str, Tensor], source: Source) -> dict[str, Any]:
    """Copy tensors of a model on the meta device from its files into one; see :func:`write_block`."""
    kinds = {name: source.kind(tensor) for name, tensor in tensors.items()}
    write(out / file, kinds, lambda name: source.read(tensors[name]))
    return _row(file, kinds)


def write_block(out: Path, file: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write one block's tensors; returns file, bytes, parameters and bits a weight for ``pool.json``."""
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write(out / file, kinds, tensors.__getitem__)
    return _row(file, kinds)


def _row(file: str, kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, Any]:
    counts = {name: int(torch.Size(shape).numel()) for name, (_, shape) in kinds.items()}
    return {
        "file": file,
        "bytes": sum(counts[name] * dtype.itemsize for name, (dtype, _) in kinds.items()),
        "parameters": sum(counts.values()),
        "bits": max((dtype.itemsize * 8 for dtype, _ in kinds.values()), default=0),
    }


def write_pool(out: Path, models: dict[str, dict]) -> None:
    """Write :data:`POOL`; ``out`` is the folder that :func:`artifacts.output_folder` gives."""
    write_json(out / POOL, {"models": models, "order": list(models)})


def _head(model: nn.Module, family: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The head's own tensors by name, and those that are the start block's (tied): their names there."""
    spec = family_of(family)
    trunk = find(model, spec.trunk)
    assert trunk is not None
    parts = {part: find(trunk, part) for part in spec.embeddings}
    tables = {
        id(parameter): f"embed.{part}.{name}"
        for part, module in parts.items()
        if module is not None
        for name, parameter in module.named_parameters()
    }
    head = named(head_of(model, family))
    own = {name: tensor for name, tensor in head.items() if id(tensor) not in tables}
    return own, {name: tables[id(tensor)] for name, tensor in head.items() if id(tensor) in tables}


class Lender(Protocol):
    """Who brings a pool's blocks into memory instead of the pool."""

    def lent(self, block: str) -> Block:
        """The block, ready to compute."""

    def expect(self, blocks: Sequence[str]) -> None:
        """What will be asked for next."""


class Pool:
    """A verified pool of blocks, loaded on demand and kept (all blocks are frozen and in eval mode)."""

    def __init__(self, folder: Path, prepare: Prepare | None) -> None:
        self.folder = folder
        self._prepare = prepare
        self._raw = read_json(folder / POOL)
        self._blocks: dict[str, Block] = {}
        self._embeddings: dict[str, Embedding] = {}
        self._configs: dict[str, Any] = {}
        self._tokenizers: dict[str, Any] = {}
        self._reads_as: dict[str, str] = {}
        self._infos: dict[str, BlockInfo] = {}
        self.models: dict[str, ModelInfo] = {}
        self.lender: Lender | None = None  # gives the blocks instead, see assyllm.swapper
        for name in self._raw["order"]:
            raw = self._raw["models"][name]
            fields = ("family", "stands_for", "licence", "revision", "width", "layers")
            self.models[name] = ModelInfo(name=name, **{f: raw[f] for f in fields})
            for row in raw["blocks"]:
                first, last = row["layers"]
                info = BlockInfo(
                    id=block_id(name, first, last),
                    model=name,
                    family=raw["family"],
                    kind=kind_of(first, last, raw["layers"]),
                    layers=(first, last),
                    width=raw["width"],
                    causal=family_of(raw["family"]).architecture.causal,
                    file=row["file"],
                    bytes=row["bytes"],
                    parameters=row["parameters"],
                    bits=row["bits"],
                    group_size=row.get("group_size", 0),
                )
                self._infos[info.id] = info

    @classmethod
    def open(cls, folder: Path, prepare: Prepare | None = None) -> Pool:
        """Open a pool after checking every file against its sha256, once.

        Args:
            prepare: swaps in layers that compute from packed weights; ``quantizer.pool.open_pool`` gives it.

        Raises:
            ArtifactError: a file is missing, truncated or altered.
        """
        verify_folder(Path(folder))
        return cls(Path(folder), prepare)

    @property
    def ids(self) -> list[str]:
        """All block ids, model by model, first layer to last."""
        return list(self._infos)

    @property
    def bytes(self) -> int:
        """Bytes of all blocks' tensors on disk (language-model heads are not part of it)."""
        return sum(info.bytes for info in self._infos.values())

    def info(self, block: str) -> BlockInfo:
        """What ``pool.json`` says of a block.

        Raises:
            ArtifactError: no such block.
        """
        if block not in self._infos:
            raise ArtifactError(f"{self.folder}: no block {block!r} in the pool")
        return self._infos[block]

    def of_model(self, model: str) -> list[BlockInfo]:
        """A model's blocks, first layer to last.

        Raises:
            ArtifactError: no such model.
        """
        if model not in self.models:
            raise ArtifactError(f"{self.folder}: no model {model!r} in the pool")
        return [info for info in self._infos.values() if info.model == model]

    def before(self, block: str) -> str | None:
        """The block whose output this block natively receives, None for a start block."""
        info = self.info(block)
        return next((b.id for b in self.of_model(info.model) if b.layers[1] == info.layers[0]), None)

    def prefix(self, block: str) -> tuple[str, ...]:
        """The blocks of its own model that come before a block, first layer to last."""
        info = self.info(block)
        return tuple(b.id for b in self.of_model(info.model) if b.layers[1] <= info.layers[0])

    def config(self, model: str) -> Any:
        """transformers' config of a zoo member."""
        if model not in self._configs:
            self.of_model(model)  # an unknown one is named
            values = read_json(self.folder / "models" / model / "config.json")
            self._configs[model] = family_of(self.models[model].family).config(values)
        return self._configs[model]

    def tensors(self, block: str) -> dict[str, Tensor]:
        """A block's tensors as they lie on disk."""
        return load_file(self.folder / self.info(block).file)

    def reads(self, block: str) -> Give:
        """What reads a block's tensors, by name, one at a time, as they lie on disk."""
        kept = header(self.folder / self.info(block).file)
        return lambda name: kept[name].read()

    def block(self, block: str) -> Block:
        """The block, ready to compute in float32; loaded at the first call and kept.

        Raises:
            ArtifactError: no such block, or packed weights in a pool opened without ``prepare``.
        """
        if self.lender is not None:
            return self.lender.lent(block)
        if block not in self._blocks:
            self._blocks[block] = self._load(block)
        return self._blocks[block]

    def resident(self, block: str) -> Block:
        """The block with its weights in memory for as long as the caller holds it, whoever lends the others.

        A lent block has weights only while it computes; a model that is to be saved needs them all.
        """
        return self.block(block) if self.lender is None else self._load(block)

    def _load(self, block: str) -> Block:
        tensors = self.tensors(block)
        return load_into(self.empty(block, tensors), tensors)

    def embedding(self, model: str) -> Embedding:
        """A model's embedding without its layers; loaded at the first call and kept."""
        if model not in self._embeddings:
            start, prepare = self.of_model(model)[0], self._prepare
            swap = None if prepare is None else lambda block, tensors: prepare(block, start, tensors)
            config, tensors = self.config(model), self.tensors(start.id)
            self._embeddings[model] = load_embedding(model, start.family, config, tensors, swap)
        return self._embeddings[model]

    def embedding_bytes(self, model: str) -> int:
        """Bytes of a model's embedding on disk."""
        tensors = self.tensors(self.of_model(model)[0].id)
        return sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith(PREFIX))

    def expect(self, blocks: Sequence[str]) -> None:
        """Say which blocks will be asked for next, in order: what swaps them can read ahead. Else nothing happens."""
        if self.lender is not None:
            self.lender.expect(blocks)

    def empty(self, block: str, tensors: dict[str, Tensor] | None = None) -> Block:
        """The block without weights (on the meta device), laid out for ``tensors`` as they are stored, if given."""
        info = self.info(block)
        made = empty_block(info.model, info.family, info.layers, self.config(info.model))
        if self._prepare is not None and tensors is not None:
            self._prepare(made, info, tensors)
        return made

    def forget(self, block: str) -> None:
        """Let go of a loaded block's memory."""
        self._blocks.pop(block, None)

    def tokenizer(self, model: str) -> Any:
        """The model's tokenizer."""
        if model not in self._tokenizers:
            self.of_model(model)
            self._tokenizers[model] = load_tokenizer(self.folder / "models" / model)
        return self._tokenizers[model]

    def reads_as(self, model: str) -> str:
        """The first model of the pool with the same tokenizer: what is encoded for one serves the other."""
        if model not in self._reads_as:
            files = {name: self.folder / "models" / name / "tokenizer.json" for name in self.models}
            own = sha256_file(files[model])
            self._reads_as[model] = next(name for name, file in files.items() if sha256_file(file) == own)
        return self._reads_as[model]

    def lm_head(self, model: str) -> nn.Module:
        """The model's language-model head, tied weights taken from its start block."""
        self.of_model(model)
        raw, spec = self._raw["models"][model], family_of(self.models[model].family)
        head = head_of(spec.build(self.config(model)), self.models[model].family)
        start = self.tensors(self.of_model(model)[0].id)
        tensors = load_file(self.folder / "models" / model / HEAD)
        for name, source in raw["tied"].items():
            if source not in start:  # a packed embedding table
                table: Any = self.block(self.of_model(model)[0].id).get_submodule(source.removesuffix(".weight"))
                start[source] = table.dense()
            tensors[name] = start[source]
        head.load_state_dict({n: t.float() for n, t in tensors.items()}, assign=True)
        return head.eval().requires_grad_(False)


def load_into(block: Block, tensors: dict[str, Tensor]) -> Block:
    """Give an empty block its weights, each in the dtype that the module declares; freeze it.

    Raises:
        ArtifactError: names or shapes do not fit.
    """
    wanted = block.state_dict()
    if sorted(wanted) != sorted(tensors):
        odd = sorted(set(wanted) ^ set(tensors))[0]
        raise ArtifactError(
            f"block {block.id}: its file does not fit ({odd}); quantizer.pool.open_pool opens quantized pools"
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ArtifactError(f"block {block.id}: {name} is {list(tensor.shape)} in the file")
    block.load_state_dict({n: t.to(wanted[n].dtype) for n, t in tensors.items()}, assign=True)
    return block.eval().requires_grad_(False)
