"""The Block Swapper's face: walk a pool that does not fit in memory.

::

    with Swapper("data/pool/base/zoo0", budget_bytes=4_000_000_000, plan=order) as swapper:
        for block in swapper:
            states = block.each(batches)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from assyllm import params
from assyllm.artifacts import MANIFEST, ArtifactError, read_json, sha256_file
from assyllm.blocks.block import Block
from assyllm.blocks.pool import Pool
from assyllm.quantizer.pool import prepare
from assyllm.swapper.bind import Binding, Part, place_buffers
from assyllm.swapper.engine import Engine, Event
from assyllm.swapper.memory import CudaMemory, HostMemory, Unit, place_of
from assyllm.swapper.reader import Reader, peek
from assyllm.zoo.header import header


class Swapper:
    """A pool's blocks, read from disk when their turn comes and dropped when room is needed; a layer at a time.

    A block computes like the pool's own: the same modules on the same bytes. Its weights are there while it
    computes; outside its turn a layer has none, and a call of its modules is an ArtifactError.

    Args:
        pool: an opened pool, or its folder (every file is then checked against its sha256, once).
        budget_bytes: bytes of weights in memory, read-ahead included; activations are the caller's.
        plan: block ids in the order in which they will run; the pool's order, once, if None.
        policy: what leaves first, a name in :data:`assyllm.swapper.plan.POLICIES`; ``plan`` is farthest next use.
        window: accesses (layers) that the policy ``plan`` looks ahead; None for the whole plan.
        preload: read the next layer while one computes.
        preswap: make room for it in advance.
        device: where blocks compute; on a GPU the budget is the GPU's memory.
        host: for a GPU, ``disk`` or ``ram`` (see :class:`assyllm.swapper.memory.CudaMemory`).
        direct: O_DIRECT or not; None where the file system has it.
        bytes_per_s: pace of a storage to be simulated.
        correlation: (block, block) -> correlation, for ``lru_correlation``.

    Raises:
        ArtifactError: the budget is below two layers (with the bytes needed), a file is broken, an unknown block, or an
            argument that cannot be.
    """

    def __init__(
        self,
        pool: Pool | Path | str,
        budget_bytes: int,
        plan: Sequence[str] | None = None,
        *,
        policy: str = "plan",
        window: int | None = None,
        preload: bool = True,
        preswap: bool = True,
        device: str = "cpu",
        host: str = "disk",
        direct: bool | None = None,
        bytes_per_s: float | None = None,
        correlation: Mapping[tuple[str, str], float] | None = None,
        record: bool = True,
        seed: int = 0,
    ) -> None:
        on = place_of(budget_bytes, device, host, bytes_per_s)
        known = isinstance(pool, Pool)
        self.pool = pool if isinstance(pool, Pool) else Pool(Path(pool), prepare)
        self.plan = list(self.pool.ids if plan is None else plan)
        files = {self.pool.folder / self.pool.info(block).file for block in self.pool.ids}
        hashes = None if known else _hashes(self.pool.folder)
        reader = Reader(files, hashes, direct, bytes_per_s)  # an opened pool's files have been hashed
        try:
            self._blocks: dict[str, Block] = {}
            self._parts: dict[str, list[Part]] = {}
            self._expected: list[str] = []
            units = [unit for block in self.pool.ids for unit in self._units(block, cast=on.type == "cpu")]
            place: Any = HostMemory() if on.type == "cpu" else CudaMemory(on, units, reader, host)
            binding = Binding(part for parts in self._parts.values() for part in parts)
            self.engine = Engine(
                units, place, reader, budget_bytes, self.accesses(self.plan),
                preload=preload, preswap=preswap, record=record, unbind=binding.unbind,
                policy=policy, window=window, correlation=correlation, seed=seed,
            )  # fmt: skip
        except BaseException:
            reader.close()
            raise
        self._reader = reader
        binding.hook(self.engine.use)
        for made in self._blocks.values():
            place_buffers(made, on)

    def _units(self, block_id: str, cast: bool) -> list[Unit]:
        """A block's units: its embedding, then its layers, the final norm with the last one."""
        entries = header(self.pool.folder / self.pool.info(block_id).file)
        block = self.pool.empty(block_id, {name: peek(entry) for name, entry in entries.items()})
        block.eval().requires_grad_(False)
        block.leaves = True
        wanted = block.state_dict()
        if sorted(wanted) != sorted(entries) or any(wanted[n].shape != e.shape for n, e in entries.items()):
            raise ArtifactError(f"block {block_id}: its file does not fit its config")
        doors: dict[str, list[Any]] = {"embed": list(block.embed.values())} if len(block.embed) else {}
        doors |= {f"stack.{i}": [layer] for i, layer in enumerate(block.stack)}
        parts = {path: Part(f"{block_id}/{path.removeprefix('stack.')}", doors[path]) for path in doors}
        tensors: dict[str, dict[str, Any]] = {path: {} for path in doors}
        for name, entry in entries.items():
            path = "embed" if name.startswith("embed.") else ".".join(name.split(".")[:2])
            path = f"stack.{len(block.stack) - 1}" if name.startswith("norm.") else path
            module, _, attribute = name.rpartition(".")
            parts[path].slots[name] = [(block.get_submodule(module), attribute)]
            tensors[path][name] = entry
        self._blocks[block_id], self._parts[block_id] = block, list(parts.values())
        return [
            Unit(
                parts[path].unit,
                mine,
                {n: wanted[n].dtype for n, e in mine.items() if wanted[n].dtype != e.dtype} if cast else {},
            )
            for path, mine in tensors.items()
        ]

    def accesses(self, blocks: Sequence[str]) -> list[str]:
        """The units that running these blocks asks for."""
        for block in blocks:
            self.pool.info(block)  # an unknown one is named
        return [part.unit for block in blocks for part in self._parts[block]]

    def block(self, block: str) -> Block:
        """A block of the pool; its layers are brought in as they compute."""
        self.pool.info(block)
        return self._blocks[block]

    def lend(self) -> Pool:
        """The pool, which gives swapped blocks from now until :meth:`close`; the plan grows as they are asked for."""
        self.pool.lender = self
        return self.pool

    def lent(self, block: str) -> Block:
        """A block that the pool is asked for: planned from here on if it was not expected."""
        if block in self._expected:
            del self._expected[: self._expected.index(block) + 1]
        else:
            self.extend([block])
        return self.block(block)

    def expect(self, blocks: Sequence[str]) -> None:
        """Plan what the pool will be asked for next."""
        self._expected = list(blocks)
        self.extend(blocks)

    def __iter__(self) -> Iterator[Block]:
        """The blocks of the plan, in order."""
        for block in self.plan:
            yield self._blocks[block]
        self.engine.finish()

    def extend(self, plan: Sequence[str]) -> None:
        """Plan further blocks: what will run after what is planned."""
        self.engine.extend(self.accesses(plan))

    def set_budget(self, budget_bytes: int) -> None:
        """Another budget from now on (see :meth:`assyllm.swapper.engine.Engine.set_budget`)."""
        self.engine.set_budget(budget_bytes)

    @property
    def events(self) -> list[Event]:
        """What happened, in order of its end."""
        return self.engine.events

    @property
    def bytes_read(self) -> int:
        """Bytes read from disk, whole pages."""
        return self._reader.bytes_read

    @property
    def peak_bytes(self) -> int:
        """The most that was in memory."""
        return self.engine.peak_bytes

    def close(self) -> None:
        """Stop reading and give the memory back."""
        if self.pool.lender is self:  # another may have taken over
            self.pool.lender = None
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _hashes(folder: Path) -> dict[Path, str]:
    """The manifest's hashes; files that hold no weights are checked right here."""
    found = {folder / name: entry["sha256"] for name, entry in read_json(folder / MANIFEST)["files"].items()}
    for file, expected in found.items():
        if file.parent.name != "blocks" and (not file.is_file() or sha256_file(file) != expected):
            raise ArtifactError(f"{file}: missing, or its sha256 is not the manifest's; remake it")
    return found


def lend(pool: Pool, settings: params.Swapper, correlation: Mapping[tuple[str, str], float] | None = None) -> Pool:
    """The pool as ``settings`` want it: resident, or its blocks swapped until the process ends.

    Args:
        correlation: (block, block) -> correlation, for the policy ``lru_correlation``; without any it goes by age.
    """
    if settings.budget_gb is None:
        return pool
    swapper = Swapper(
        pool, round(settings.budget_gb * 1e9), (), policy=settings.policy, window=settings.window_layers,
        preload=settings.preload, preswap=settings.preswap, record=False,
        correlation=correlation,
    )  # fmt: skip
    return swapper.lend()
