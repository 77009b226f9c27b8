"""The product of a run: a network of blocks, adapters and a scoring head that answers questions.

A saved model is a folder of safetensors and text: ``recipe.yaml``, ``model.safetensors`` (blocks as the pool
stores them, packed or not, adapters, head, embeddings that adapters read), ``configs/<model>.json``, the
tokenizer of the first block's model, and ``tokenizers/<model>/`` of those that adapters move the stream to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from assyllm.adapter.base import Adapter
from assyllm.adapter.reading import Readings
from assyllm.adapter.registry import build
from assyllm.artifacts import ArtifactError, output_folder, read_json, verify_folder, write_json
from assyllm.assembly.head import Head, sketched
from assyllm.assembly.recipe import Recipe
from assyllm.blocks.block import Block, block_id, kind_of
from assyllm.blocks.embedding import Embedding, load_embedding
from assyllm.blocks.families import family as family_of
from assyllm.blocks.pool import BlockInfo, Pool, load_into
from assyllm.blocks.split import empty_block
from assyllm.comparator.activations import advance, pooled
from assyllm.quantizer.pool import prepare
from assyllm.tasks.record import Question
from assyllm.zoo.encoding import Encoded, combine, encode
from assyllm.zoo.load import load_tokenizer

WEIGHTS = "model.safetensors"


class AssembledModel(nn.Module):
    """Blocks in order, an adapter before each (or none), and a head on pooled states.

    Args:
        adapters: one per block, the first None.
        tokenizers: by model, at least the first block's and those whose blocks an adapter reads the text for.
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
        self.tokenizers = {model: tokenizers[model] for model in dict.fromkeys([self.first, *read])}
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
        """Questions in the tokens that this model reads: by zoo member, the first block's first."""
        used = dict.fromkeys(self._same.values())
        return {model: encode(self.tokenizers[model], questions, self.recipe.max_tokens) for model in used}

    @torch.no_grad()
    def features(self, encoded: Mapping[str, Encoded]) -> Tensor:
        """The head's features ``[N, C, F]``."""
        found = Readings(encoded.__getitem__, self.embeddings.__getitem__, self.first, lambda m: self._same.get(m, m))
        tokens = self.first
        states: list[Tensor] | None = None
        parts = []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if states is not None and str(i) in self.adapters:
                adapter = self.adapters[str(i)]
                assert isinstance(adapter, Adapter)
                if adapter.reads:
                    joins = found.joins(tokens, block.model, block.causal)
                    states = [adapter(hidden, join) for hidden, join in zip(states, joins, strict=True)]
                    tokens = block.model if adapter.moves else tokens
                else:
                    states = [adapter(hidden) for hidden in states]
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

    def tensors(self) -> dict[str, Tensor]:
        """All weights by name, as they are saved."""
        found = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        found |= {f"adapters.{name}": tensor for name, tensor in self.adapters.state_dict().items()}
        for model, module in self.embeddings.items():
            if model not in self._started:
                found |= {f"embeddings.{model}.{name}": tensor for name, tensor in module.state_dict().items()}
        found |= {f"blocks.{name}": tensor for name, tensor in self.blocks.state_dict().items()}
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def save_pretrained(self, folder: Path, pool: Pool) -> None:
        """Write the model into a folder, whole or not at all.

        Args:
            pool: where configs and tokenizer are copied from, and block tensors as the pool stores them (so that
                a quantized block stays as small on disk as it is in the pool).
        """
        tensors = {name: tensor for name, tensor in self.tensors().items() if not name.startswith("blocks.")}
        for i, block in enumerate(self.recipe.blocks):
            tensors |= {f"blocks.{i}.{name}": tensor for name, tensor in pool.tensors(block).items()}
        infos = [pool.info(block) for block in self.recipe.blocks]
        with output_folder(folder) as out:
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, out / WEIGHTS)
            for model in sorted({info.model for info in infos}):
                config = read_json(pool.folder / "models" / model / "config.json")
                write_json(out / "configs" / f"{model}.json", config)
            rows = [{"parameters": i.parameters, "bytes": i.bytes, "group_size": i.group_size} for i in infos]
            write_json(out / "blocks.json", {"blocks": rows})
            self.tokenizer.save_pretrained(out)
            for model in sorted(self.tokenizers):
                if model != self.first:
                    self.tokenizers[model].save_pretrained(out / "tokenizers" / model)
            self.recipe.write(out / "recipe.yaml")

    @classmethod
    def from_pretrained(cls, folder: Path) -> AssembledModel:
        """Load a saved model after checking every file against its sha256.

        Raises:
            ArtifactError: a file is missing, altered, or does not fit the recipe.
        """
        folder = Path(folder)
        verify_folder(folder)
        path = folder / "recipe.yaml"
        recipe = Recipe.from_yaml(path.read_text(encoding="utf-8"), path)
        tensors = load_file(folder / WEIGHTS)
        stored = read_json(folder / "blocks.json")["blocks"]
        blocks: list[Block] = []
        adapters: list[Adapter | None] = []
        tokenizers, embeddings = {recipe.slices[0]["model"]: load_tokenizer(folder)}, {}
        for i, (row, size) in enumerate(zip(recipe.slices, stored, strict=True)):
            config = family_of(row["family"]).config(read_json(folder / "configs" / f"{row['model']}.json"))
            first, last = row["layer_range"]
            info = BlockInfo(
                id=block_id(row["model"], first, last),
                model=row["model"],
                family=row["family"],
                kind=kind_of(first, last, int(config.num_hidden_layers)),
                layers=(first, last),
                width=row["width"],
                causal=family_of(row["family"]).causal,
                file=WEIGHTS,
                bytes=size["bytes"],
                parameters=size["parameters"],
                bits=row["bits"],
                group_size=size["group_size"],
            )
            mine = _under(tensors, f"blocks.{i}.")
            block = empty_block(info.model, info.family, info.layers, config)
            prepare(block, info, mine)
            blocks.append(load_into(block, mine))
            joined = row.get("adapter")
            adapters.append(build(joined, _under(tensors, f"adapters.{i}.")) if joined else None)
            own = folder / "tokenizers" / info.model
            if own.is_dir():
                tokenizers[info.model] = load_tokenizer(own)
            if embedded := _under(tensors, f"embeddings.{info.model}."):
                embeddings[info.model] = load_embedding(info.model, info.family, config, embedded)
        head = Head(tensors["head.weight"])
        return cls(blocks, adapters, head, recipe, tokenizers, embeddings).eval()


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
