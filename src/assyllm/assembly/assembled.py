"""The product of a run: a network of blocks, adapters and a scoring head that answers questions.

A saved model is a folder of safetensors and text, as transformers writes one::

    config.json             model_type, and the config of every model that a block comes from
    model.safetensors       the blocks' tensors, packed or not, and embeddings that adapters read
    adapters.safetensors    what was fitted: adapters and head (small; with recipe.yaml and a pool it is the model)
    recipe.yaml             which layers of which models, joined by what, under which licence
    README.md               the model card
    tokenizer.json, ...     the tokenizer of the first block's model; tokenizers/<model>/ those that adapters move to
    manifest.json           sha256 of every file
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from assyllm.adapter.base import Adapter
from assyllm.adapter.reading import Readings
from assyllm.adapter.registry import build
from assyllm.adapter.sent import block_features
from assyllm.artifacts import (
    ArtifactError,
    output_folder,
    read_json,
    sha256_file,
    verify_folder,
    write_json,
    write_text,
)
from assyllm.assembly.card import card
from assyllm.assembly.head import Head, sketched
from assyllm.assembly.recipe import Recipe, slices_of, strictest
from assyllm.blocks.block import Block, block_id, kind_of
from assyllm.blocks.embedding import Embedding, load_embedding
from assyllm.blocks.families import family as family_of
from assyllm.blocks.pool import BlockInfo, Pool, load_into
from assyllm.blocks.split import empty_block
from assyllm.comparator.activations import advance, pooled
from assyllm.quantizer.pool import prepare
from assyllm.tasks.record import Question
from assyllm.zoo.encoding import Encoded, combine, encode
from assyllm.zoo.load import load_tokenizer, positions

CONFIG, WEIGHTS, FITTED, RECIPE, CARD = (
    "config.json", "model.safetensors", "adapters.safetensors", "recipe.yaml", "README.md",
)  # fmt: skip


class AssembledModel(nn.Module):
    """Blocks in order, an adapter before each (or none), and a head on pooled states.

    Args:
        adapters: one per block, the first None.
        tokenizers: by model, at least the first block's, the other start blocks' and those that adapters read in.
        embeddings: by model, those that adapters read; taken from a start block where one is in the chain.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        adapters: Sequence[Adapter | None],
        head: Head,
        recipe: Recipe,
        tokenizers: Mapping[str, Any],
        embeddings: Mapping[str, Embedding],
    ) -> None:
        super().__init__()
        if not blocks:
            raise ArtifactError("a model of no blocks")
        if len(blocks) != len(adapters):
            raise ArtifactError(f"{len(blocks)} blocks with {len(adapters)} adapters")
        self.blocks = nn.ModuleList(blocks)
        self.adapters = nn.ModuleDict({str(i): a for i, a in enumerate(adapters) if a is not None})
        self.head = head
        self.recipe = recipe
        self.scope = recipe.head["scope"]
        self.sketch_dims = recipe.head.get("sketch_dims")
        self.first = blocks[0].model
        read = [b.model for b, a in zip(blocks, adapters, strict=True) if a is not None and a.reads]
        own = [b.model for b in blocks if b.kind == "start"]  # they read the text themselves, wherever they stand
        for block in blocks:
            if recipe.max_tokens > positions(block.config):
                said = f"more than the {positions(block.config)} positions of {block.model}"
                raise ArtifactError(f"the recipe's max_tokens {recipe.max_tokens} is {said}")
        absent = [model for model in (self.first, *read, *own) if model not in tokenizers]
        if absent:
            raise ArtifactError(f"no tokenizer of {absent[0]}, whose tokens the model reads")
        self.tokenizers = {model: tokenizers[model] for model in dict.fromkeys([self.first, *read, *own])}
        started = {b.model: Embedding(b.model, b.family, b.embed) for b in blocks if b.kind == "start"}
        self.embeddings = nn.ModuleDict({model: started.get(model) or embeddings[model] for model in sorted(set(read))})
        self._started = set(started)
        texts = {m: t.backend_tokenizer.to_str() for m, t in self.tokenizers.items()}
        self._same = {m: next(n for n in texts if texts[n] == texts[m]) for m in texts}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that the chain begins in."""
        return self.tokenizers[self.first]

    def encode(self, questions: Sequence[Question]) -> dict[str, Encoded]:
        """Questions in the tokens that this model reads, where it is: by zoo member, the first block's first."""
        used, device = dict.fromkeys(self._same.values()), self.head.weight.device
        most = self.recipe.max_tokens
        return {model: encode(self.tokenizers[model], questions, most).to(device) for model in used}

    @torch.no_grad()
    def features(self, encoded: Mapping[str, Encoded]) -> Tensor:
        """The head's features ``[N, C, F]``."""
        found = Readings(encoded.__getitem__, self.embeddings.__getitem__, self.first, lambda m: self._same.get(m, m))
        tokens = self.first
        states: list[Tensor] | None = None
        parts = []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if block.kind == "start":
                states, tokens = None, block.model
            elif states is not None and str(i) in self.adapters:
                adapter = self.adapters[str(i)]
                assert isinstance(adapter, Adapter)
                states, tokens = adapter.through(states, found, tokens, block.model, block.causal)
            rows = found.rows(tokens)
            states = advance(block, states, rows)
            if self.scope == "all_blocks" or i == len(self.blocks) - 1:
                parts.append(sketched(combine(pooled(states, rows)), self.sketch_dims, block.id))
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def forward(self, encoded: Mapping[str, Encoded]) -> Tensor:
        """Scores ``[N, C]`` of encoded questions, padding choices out of reach."""
        return self.head(self.features(encoded), encoded[self._same[self.first]].choice_mask)

    def predict(self, questions: Sequence[Question]) -> list[int]:
        """The index of the chosen answer of each question."""
        return self(self.encode(questions)).argmax(-1).tolist() if questions else []

    def fitted(self) -> dict[str, Tensor]:
        """The tensors of adapters and head by name, as they are saved."""
        found = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        return found | {f"adapters.{name}": tensor for name, tensor in self.adapters.state_dict().items()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model into a folder, whole or not at all.

        Raises:
            ArtifactError: the folder holds something else than a saved model.
        """
        blocks: list[Block] = [block for block in self.blocks if isinstance(block, Block)]
        tensors = {f"{i}.{name}": _narrow(t) for i, block in enumerate(blocks) for name, t in block.tensors().items()}
        for model, module in self.embeddings.items():
            if model not in self._started:
                tensors |= {f"embeddings.{model}.{name}": _narrow(t) for name, t in module.state_dict().items()}
        configs = {block.model: json.loads(block.config.to_json_string(use_diff=False)) for block in blocks}
        with output_folder(Path(folder), like=RECIPE) as out:
            write_json(
                out / CONFIG, {"model_type": "assyllm", "architectures": [type(self).__name__], "models": configs}
            )
            save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, out / WEIGHTS)
            save_file({name: tensor.contiguous().clone() for name, tensor in self.fitted().items()}, out / FITTED)
            self.tokenizer.save_pretrained(out)
            for model in sorted(set(self.tokenizers) - {self.first}):
                self.tokenizers[model].save_pretrained(out / "tokenizers" / model)
            replace(self.recipe, fitted_sha256=sha256_file(out / FITTED), fitted_to=self.recipe.fits).write(
                out / RECIPE
            )
            write_text(out / CARD, card(self.recipe))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> AssembledModel:
        """Load a saved model after checking every file against its sha256.

        Raises:
            ArtifactError: a file is missing, altered, or does not fit the recipe.
        """
        folder = Path(folder)
        verify_folder(folder)
        recipe = Recipe.read(folder / RECIPE)
        configs = read_json(folder / CONFIG).get("models", {})
        tensors = _tensors(folder / WEIGHTS)
        blocks, embeddings = [], {}
        tokenizers = {recipe.slices[0]["model"]: load_tokenizer(folder, named=True)}
        for i, row in enumerate(recipe.slices):
            if row["model"] not in configs:
                raise ArtifactError(f"{folder / CONFIG}: no config of {row['model']}, which {RECIPE} names")
            config = family_of(row["family"]).config(configs[row["model"]])
            mine = _under(tensors, f"{i}.")
            info = _info(row, int(config.num_hidden_layers), mine)
            block = empty_block(info.model, info.family, info.layers, config)
            prepare(block, info, mine)
            blocks.append(load_into(block, mine))
            if (own := folder / "tokenizers" / info.model).is_dir():
                tokenizers[info.model] = load_tokenizer(own)
            if embedded := _under(tensors, f"embeddings.{info.model}."):
                swap = partial(_prepare, info)
                embeddings[info.model] = load_embedding(info.model, info.family, config, embedded, swap)
        return _put_together(recipe, blocks, _tensors(folder / FITTED), tokenizers, embeddings)


def assemble(recipe: Recipe, pool: Pool, fitted: Path) -> AssembledModel:
    """Build a model again: blocks from a pool, adapters and head from ``adapters.safetensors``.

    Raises:
        ArtifactError: the pool lacks a block, holds another version of one, or has it under another licence; or
            the tensors do not fit the recipe.
    """
    for row, (block, now) in zip(recipe.slices, slices_of(pool, recipe.blocks).items(), strict=True):
        changed = [key for key, value in now.items() if row.get(key) != value]
        if changed:
            key = changed[0]
            raise ArtifactError(f"{pool.folder}: {block} has {key} {now[key]!r}, the recipe says {row.get(key)!r}")
    licences = {name: pool.models[name].licence for name in sorted({row["model"] for row in recipe.slices})}
    if licences != recipe.licences:
        raise ArtifactError(f"{pool.folder}: licences {licences}, the recipe says {recipe.licences}")
    if recipe.licence != strictest(licences.values()):
        said = f"the recipe says {recipe.licence}"
        raise ArtifactError(f"{pool.folder}: the strictest licence is {strictest(licences.values())}, {said}")
    tensors = _tensors(fitted)
    if recipe.fitted_sha256 not in ("", sha256_file(fitted)):
        raise ArtifactError(f"{fitted}: its sha256 is not the recipe's: adapters and head of another model")
    blocks = [pool.block(block) for block in recipe.blocks]
    models = sorted({row["model"] for row in recipe.slices})
    tokenizers = {model: pool.tokenizer(model) for model in models}
    embeddings = {model: pool.embedding(model) for model in models}
    return _put_together(recipe, blocks, tensors, tokenizers, embeddings)


def _put_together(
    recipe: Recipe,
    blocks: Sequence[Block],
    fitted: Mapping[str, Tensor],
    tokenizers: Mapping[str, Any],
    embeddings: Mapping[str, Embedding],
) -> AssembledModel:
    described = {str(i) for i, row in enumerate(recipe.slices) if row.get("adapter")}
    surplus = {name.split(".")[1] for name in fitted if name.startswith("adapters.")} - described
    if surplus:
        raise ArtifactError(
            f"{FITTED}: an adapter before slice {min(map(int, surplus)) + 1}, which the recipe does not name"
        )
    for number, (last, row) in enumerate(pairwise(recipe.slices), start=2):
        if last["width"] != row["width"] and not row.get("adapter") and row["kind"] != "start":
            raise ArtifactError(
                f"{RECIPE}: slice {number} is {row['width']} wide after {last['width']}, without an adapter"
            )
    adapters = []
    for i, row in enumerate(recipe.slices):
        kind = row.get("adapter")
        adapters.append(build(kind, _under(fitted, f"adapters.{i}.")) if kind else None)
    try:
        head = Head(**_under(fitted, "head."))
    except TypeError:
        raise ArtifactError(f"{FITTED}: not the tensors of a head: {sorted(_under(fitted, 'head.'))}") from None
    read = recipe.slices if recipe.head["scope"] == "all_blocks" else recipe.slices[-1:]
    wanted = sum(block_features(row["width"], recipe.head.get("sketch_dims")) for row in read)
    if head.weight.shape != (wanted,):
        raise ArtifactError(f"{FITTED}: a head of {head.weight.numel()} features, {RECIPE}'s slices have {wanted}")
    return AssembledModel(blocks, adapters, head, recipe, tokenizers, embeddings).eval()


def _info(row: Mapping[str, Any], layers: int, tensors: Mapping[str, Tensor]) -> BlockInfo:
    first, last = row["layer_range"]
    return BlockInfo(
        id=block_id(row["model"], first, last),
        model=row["model"],
        family=row["family"],
        kind=kind_of(first, last, layers),
        layers=(first, last),
        width=row["width"],
        causal=family_of(row["family"]).architecture.causal,
        file=WEIGHTS,
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        parameters=row["parameters"],
        bits=row["bits"],
        group_size=row.get("group_size", 0),
    )


def _narrow(tensor: Tensor) -> Tensor:
    """At 16 bit where that loses nothing: what a pool stores at 16 bit is as small in a saved model."""
    if tensor.dtype == torch.float32:
        for dtype in (torch.float16, torch.bfloat16):
            if torch.equal(tensor.to(dtype).float(), tensor):
                return tensor.to(dtype)
    return tensor


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: not readable as safetensors ({error})") from None


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _prepare(info: BlockInfo, block: Block, tensors: dict[str, Tensor]) -> None:
    prepare(block, info, tensors)
