"""Native inputs of every block on the server's public text, and second moments of its linear layers' inputs.

Never a client's data: what is read here is ``<task>/public.txt``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from assyllm.artifacts import ArtifactError, read_lines
from assyllm.blocks.block import Block
from assyllm.tasks.record import Question
from assyllm.zoo.encoding import encode
from assyllm.zoo.load import positions

if TYPE_CHECKING:
    from assyllm.blocks.pool import BlockInfo, Pool

EXAMPLES = 16  # of one forward pass
Batches = list[tuple[Tensor, Tensor]]  # (ids [n, T] or states [n, T, d], mask [n, T])


def public_lines(tasks: Path, names: Sequence[str], number: int) -> list[str]:
    """``number`` public texts of the tasks, evenly spaced among all of them, each once.

    Raises:
        ArtifactError: there is no public text of at least two words.
    """
    lines: dict[str, None] = {}
    for name in names:
        public = read_lines(tasks / name / "public.txt")
        lines |= dict.fromkeys(line for line in public if len(line.split()) > 1)
    found = list(lines)
    if not found:
        raise ArtifactError(f"{tasks}: no public text to calibrate on")
    step = max(1, len(found) // number)
    return found[::step][:number]


def batches(pool: Pool, model: str, lines: Sequence[str], max_tokens: int) -> Batches:
    """Texts in a model's tokens, read as the tasks are: the last word stands where an answer would.

    Blank ones are left out, and what a model has no positions for is cut.

    Raises:
        ArtifactError: no texts.
    """
    if isinstance(lines, str) or not (words := [line.split() for line in lines if line.strip()]):
        raise ArtifactError("calibration takes a list of texts, of which one at least is not blank")
    questions = [
        Question(f"public-{n}", "", " ".join(stem), (last, last), 0)  # one row is read
        for n, (*stem, last) in enumerate(words)
    ]
    encoded = encode(pool.tokenizer(model), questions, min(max_tokens, positions(pool.config(model))))
    out = []
    for start in range(0, len(questions), EXAMPLES):
        part = encoded[slice(start, start + EXAMPLES)]
        out.append((part.ids[:, 0], part.mask[:, 0]))
    return out


def native_inputs(pool: Pool, model: str, first: Batches) -> Iterator[tuple[BlockInfo, Block, Batches]]:
    """A model's blocks in order, each with what it natively receives; one block is held at a time."""
    received = first
    for info in pool.of_model(model):
        block = pool.block(info.id)
        yield info, block, received
        with torch.no_grad():
            received = [(block(hidden, mask), mask) for hidden, mask in received]
        pool.forget(info.id)


def linears(block: Block) -> dict[str, nn.Linear]:
    """The linear layers inside a block's layers, by their path in the block: what is packed at mixed precision.

    Raises:
        ArtifactError: a layer has a matrix elsewhere, which would pass for packed and stay as it is.
    """
    modules = {f"stack.{path}": module for path, module in block.stack.named_modules()}
    found = {path: module for path, module in modules.items() if isinstance(module, nn.Linear)}
    for path, module in modules.items():
        if path not in found and any(weight.ndim > 1 for weight in module.parameters(recurse=False)):
            raise ArtifactError(f"block {block.id}: {path} is a {type(module).__name__}; only nn.Linear is packed")
    return found


@torch.no_grad()
def second_moments(block: Block, received: Batches) -> dict[str, Tensor]:
    """X'X ``[in, in]`` float32 of every linear layer's inputs, padding left out."""
    layers = linears(block)
    sums = {p: torch.zeros(m.in_features, m.in_features, device=m.weight.device) for p, m in layers.items()}
    real: Tensor | None = None

    def keep(path: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            x = given[0].reshape(-1, given[0].shape[-1])[real].float()
            sums[path].addmm_(x.T, x)

        return hook

    handles = [module.register_forward_hook(keep(path)) for path, module in layers.items()]
    try:
        for hidden, mask in received:
            real = mask.flatten()
            block(hidden, mask)
    finally:
        for handle in handles:
            handle.remove()
    return sums
