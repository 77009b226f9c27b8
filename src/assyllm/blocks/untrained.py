"""A pool of the same shapes with freshly initialised weights: the control that says what pre-training is worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from assyllm import seeding
from assyllm.blocks.block import Block
from assyllm.blocks.embedding import Embedding
from assyllm.blocks.pool import Pool
from assyllm.blocks.split import split
from assyllm.zoo.architecture import language_model


class UntrainedPool(Pool):
    """Models, segments and tokenizers of a pool on disk; weights as transformers initialises them, by seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, None)
        self._seed = seed
        for name, model in self.models.items():
            for block in self._fresh(name, model.family):
                self._blocks[block.id] = block
                tensors = block.tensors().values()
                size = sum(tensor.nbytes for tensor in tensors)
                self._infos[block.id] = replace(self._infos[block.id], bits=32, group_size=0, bytes=size)
                if block.kind == "start":
                    self._embeddings[name] = Embedding(name, model.family, block.embed)

    def tensors(self, block: str) -> dict[str, Tensor]:
        """A block's fresh weights."""
        return self._blocks[block].tensors()

    def forget(self, block: str) -> None:
        """Fresh weights are nowhere on disk, so nothing is let go."""

    def _fresh(self, name: str, family: str) -> list[Block]:
        segments = [info.layers[1] - info.layers[0] for info in self.of_model(name)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.seed_for("untrained", self._seed, name))
            model = language_model(self.config(name))
        model.eval().requires_grad_(False)
        return [block.eval() for block in split(model, name, family, segments)]
