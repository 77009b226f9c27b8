"""The product of a run: a network of blocks, adapters and a scoring head that answers questions.

A saved model is a folder of safetensors and text: ``recipe.yaml``, ``model.safetensors`` (blocks as the pool
stores them, packed or not, adapters, head), ``configs/<model>.json``, the tokenizer of the first block's model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from assyllm.adapter.base import Adapter
from assyllm.adapter.registry import build
from assyllm.artifacts import ArtifactError, output_folder, read_json, verify_folder, write_json
from assyllm.assembly.head import Head
from assyllm.assembly.recipe import Recipe
from assyllm.blocks.block import Block, block_id, kind_of
from assyllm.blocks.families import family as family_of
from assyllm.blocks.pool import BlockInfo, Pool, load_into
from assyllm.blocks.split import empty_block
from assyllm.comparator.activations import advance, pooled, rows_of
from assyllm.quantizer.pool import prepare
from assyllm.tasks.record import Question
from assyllm.zoo.encoding import Encoded, combine, encode
from assyllm.zoo.load import load_tokenizer

WEIGHTS = "model.safetensors"


class AssembledModel(nn.Module):
    """Blocks in order, an adapter before each (or none), and a head on pooled states.

    Args:
        adapters: one per block, the first None.
        scope: "last_block" or "all_blocks": whose pooled states the head reads.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        adapters: Sequence[Adapter | None],
        head: Head,
        recipe: Recipe,
        tokenizer: Any,
    ) -> None:
        super().__init__()
        if len(blocks) != len(adapters):
            raise ArtifactError(f"{len(blocks)} blocks with {len(adapters)} adapters")
        self.blocks = nn.ModuleList(blocks)
        self.adapters = nn.ModuleDict({str(i): a for i, a in enumerate(adapters) if a is not None})
        self.head = head
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.scope = recipe.head["scope"]

    def encode(self, questions: Sequence[Question]) -> Encoded:
        """Questions in the tokens that this model reads."""
        return encode(self.tokenizer, questions, self.recipe.max_tokens)

    @torch.no_grad()
    def features(self, encoded: Encoded) -> Tensor:
        """The head's features ``[N, C, F]``."""
        rows = rows_of(encoded)
        states: list[Tensor] | None = None
        parts = []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if states is not None and str(i) in self.adapters:
                states = [self.adapters[str(i)](hidden) for hidden in states]
            states = advance(block, states, rows)
            if self.scope == "all_blocks" or i == len(self.blocks) - 1:
                parts.append(combine(pooled(states, rows)))
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def forward(self, encoded: Encoded) -> Tensor:
        """Scores ``[N, C]`` of encoded questions, padding choices out of reach."""
        return self.head(self.features(encoded), encoded.choice_mask)

    def predict(self, questions: Sequence[Question]) -> list[int]:
        """The index of the chosen answer of each question."""
        return self(self.encode(questions)).argmax(-1).tolist() if questions else []

    def tensors(self) -> dict[str, Tensor]:
        """All weights by name, as they are saved."""
        found = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        found |= {f"adapters.{name}": tensor for name, tensor in self.adapters.state_dict().items()}
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
        blocks, adapters = [], []
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
        head = Head(tensors["head.weight"])
        return cls(blocks, adapters, head, recipe, load_tokenizer(folder)).eval()


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
