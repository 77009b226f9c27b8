"""The search's own walks: which blocks it passes through in a round, in which order (``walk.csv`` of a run)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from assyllm.artifacts import ArtifactError
from assyllm.results import read_table
from assyllm.swapper.plan import block_of

Chains = list[tuple[list[str], list[str]]]  # (blocks of an open chain, candidates put on it), in order


@dataclass
class Round:
    """What one round of a task asks of each of its clients."""

    task: str
    chains: Chains = field(default_factory=list)


def read_walk(path: Path) -> list[Round]:
    """A run's rounds, task after task, in order.

    Raises:
        ArtifactError: the file is missing or is not a walk.
    """
    rounds: dict[tuple[str, str], Round] = {}
    try:
        for row in read_table(path):
            found = rounds.setdefault((row["task"], row["round"]), Round(row["task"]))
            found.chains.append((row["chain"].split(), row["candidates"].split()))
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{path}: not a walk ({error})") from None
    for found in rounds.values():
        found.chains = passed(found.chains)
    return list(rounds.values())


def passed(asked: Iterable[tuple[Sequence[str], Sequence[str]]]) -> Chains:
    """Chains and their candidates as they are walked: blocks that enter together are a chain of their own.

    They read the text themselves, so they are passed once, whatever chains they were asked for on.
    """
    chains: Chains = []
    entering: dict[str, list[str]] = {}
    for chain, candidates in asked:
        follow = [name for name in candidates if not _reads_text(name)]
        chains.append((list(chain), follow))
        for blocks in (name.split("+") for name in candidates if name not in follow):
            if len(blocks) > len(entering.get(blocks[0], [])):
                entering[blocks[0]] = blocks
    return [*chains, *((blocks, []) for blocks in entering.values())]


def _reads_text(candidate: str) -> bool:
    """Whether it begins with its model's first layer (``model:0-1``)."""
    return candidate.partition(":")[2].startswith("0-")


def units_of(blocks: Iterable[str], sizes: Mapping[str, int]) -> list[str]:
    """The units that passing through blocks asks for, in the order in which ``sizes`` lists a block's."""
    parts: dict[str, list[str]] = {}
    for unit in sizes:
        parts.setdefault(block_of(unit), []).append(unit)
    try:
        return [unit for block in blocks for unit in parts[block]]
    except KeyError as error:
        raise ArtifactError(f"walk: block {error} has no size") from None


def walk(chains: Sequence[tuple[Sequence[str], Sequence[str]]], order: str = "block") -> list[str]:
    """The blocks that one round of the search passes through.

    Args:
        chains: (blocks of an open chain, its candidates), in the search's order.
        order: ``block``: each block once a round for every client and chain that asks (block outer, clients and
            batches inner); ``candidate``: the paper's order, chain by chain, as each client goes through it, prefixes
            that it has already run left out.
    """
    asked = [
        path
        for chain, candidates in chains
        for path in [*((*chain[: i + 1],) for i in range(len(chain))), *((*chain, block) for block in candidates)]
    ]
    if order == "candidate":
        return [path[-1] for path in dict.fromkeys(asked)]
    # a prefix is never longer than what follows it: depth by depth, equal blocks side by side
    return [block for _, block in sorted({(len(path), path[-1]) for path in asked})]
