"""What a study's models need before anything is fetched: bytes, licences, disk of every step, memory.

Sizes are arithmetic on shapes (the member's own where it is pre-trained here, the recorded config of a hub model,
else the shape that it stands for). What the hub says replaces what is recorded, and every row tells which it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from assyllm import params as P
from assyllm.artifacts import ArtifactError, read_json
from assyllm.blocks.segment import segments
from assyllm.cost.pool_sizes import FP16, Precision, block_bytes, matrices, model_bytes, sensitivity_bytes
from assyllm.cost.shapes import Shape, shape_of
from assyllm.hub import fetch as hub
from assyllm.hub.ask import COMMIT, Patience, Repository, ask, wanted
from assyllm.hub.convert import lacking
from assyllm.hub.pin import pin
from assyllm.hub.recorded import Record, record_of, task_licence
from assyllm.hub.space import SPARE, disk_of, free, gb
from assyllm.hub.words import HubError, Unreachable, endpoint, without_secrets
from assyllm.stages.download import in_local_data
from assyllm.study import Plan
from assyllm.tasks.sources import MODULES

LIBRARIES = 0.3e9  # bytes of a process that has done nothing yet
ONE_MODEL = {"zero_shot", "server_head", *P.HEADS, *P.TUNED, *P.SHARES}  # hold baselines.model at 32 bit
TRAINED_BYTES = 16  # a trained weight: itself, its gradient, two moments, all at 32 bit
PATIENCE = Patience(attempts=2)
Ask = Callable[[str, str | None], Repository]


@dataclass(frozen=True, slots=True)
class ModelNeed:
    """A member: what is fetched, what is there, what it becomes. Bytes throughout."""

    name: str
    origin: str
    revision: str | None
    licence: str
    said_by: str  # the hub | the cache | recorded | recorded, size from the shape | params
    gated: bool
    to_fetch: int
    cached: int
    written: int  # anew in data/zoo: .bin weights converted, models made or copied here
    shape: Shape
    bits: int = 32  # of a stored weight; the split pool keeps them


@dataclass(frozen=True, slots=True)
class Step:
    """Bytes that a step writes below ``folder``."""

    name: str
    folder: Path
    bytes: int


@dataclass(frozen=True, slots=True)
class Needs:
    """All of it; ``remarks`` are lines for the reader."""

    models: tuple[ModelNeed, ...]
    steps: tuple[Step, ...]
    memory: tuple[tuple[str, int], ...]
    memory_there: int
    remarks: tuple[str, ...]


def needs(plan: Plan, folder: Path, ask: Ask | None) -> Needs:
    """What ``plan`` needs when run in ``folder``.

    Args:
        ask: asks the hub; None to go by what is recorded.

    Raises:
        ArtifactError: one line; the hub refuses a model, or its commit is not the pinned one's.
    """
    remarks: list[str] = []
    zoo, home = plan.params.zoo, plan.path.absolute().parent
    models = []
    for name in zoo.models:
        if ask is None or zoo.source_of(name) != "hub":
            models.append(_need(name, zoo, home, None, remarks))
            continue
        try:
            models.append(_need(name, zoo, home, ask, remarks))
        except Unreachable as error:
            remarks.append(f"{error}; going by what is recorded")
            ask = None
            models.append(_need(name, zoo, home, None, remarks))
    if plan.params.tasks.source == "hub":
        for task in plan.params.tasks.names:
            dataset, _, revision = MODULES[task].HUB
            remarks.append(f"task {task}: {dataset}@{revision[:12]}, {task_licence(task)} (recorded)")
    here = disk_of(folder) == disk_of(hub.cache_folder())
    steps = [Step("download", hub.cache_folder(), sum(m.to_fetch for m in models))]
    zoo_bytes = sum(m.written + (0 if here or zoo.source_of(m.name) != "hub" else m.to_fetch) for m in models)
    steps.append(Step("download (data/zoo)", folder, zoo_bytes))
    steps.append(Step("split pool", folder, sum(m.shape.parameters * m.bits // 8 for m in models)))
    settings = _pools(plan)
    measured = {plan.variant("sensitivity", s): s for s in settings if plan.at(s).quantize.needs_sensitivity}
    for setting in measured.values():
        kept = plan.at(setting).sensitivity
        size = sum(m.shape.layers * sensitivity_bytes(m.shape, len(kept.scores), kept.moments) for m in models)
        steps.append(Step("sensitivity", folder, size))
    for setting in settings:
        chosen = plan.at(setting)
        size = _quantized(models, chosen.quantize, chosen.blocks)
        steps.append(Step(f"quantized pool {setting} ({chosen.quantize.mean_bits:g} bits)", folder, size))
    return Needs(tuple(models), tuple(steps), _memory(plan, models, steps), _ram(), tuple(remarks))


def _need(name: str, zoo: P.Zoo, home: Path, ask: Ask | None, remarks: list[str]) -> ModelNeed:
    member = zoo.models[name]
    source = zoo.source_of(name)
    if source != "hub":
        found = _shape_there(home, member) if source == "local" else None
        if source == "local" and found is None:
            remarks.append(f"zoo.models.{name}: nothing at {member.path} yet, sized as {member.stands_for}")
        shape = _own_shape(member) if source == "embedded" else found or shape_of(member.stands_for)
        bits = 16 if source == "random" else 32
        origin = str(member.path) if source == "local" else source
        written = shape.parameters * bits // 8
        return ModelNeed(name, origin, None, member.licence or "-", "params", False, 0, 0, written, shape, bits)
    assert member.hub_id is not None
    record = record_of(member.hub_id)
    if member.revision is None or not COMMIT.fullmatch(member.revision):
        remarks.append(f"zoo.models.{name}.revision: not pinned; run `assyllm zoo plan --pin` before the study")
    if ask is not None:
        return _asked(name, member, ask(member.hub_id, member.revision), record, remarks)
    if record is None:
        return _in_cache(name, member)
    shape = Shape.of(record.config)
    size = sum(record.files.values()) or shape.parameters * record.bits // 8
    there = _cached(member.hub_id, member.revision)
    if member.revision not in (None, record.revision):
        remarks.append(f"zoo.models.{name}: recorded is another revision, {record.revision}")
    _remark_on_vocabulary(name, [record.vocabulary], remarks)
    _remark_on_licence(name, member, record.licence, f"recorded ({record.licence_is}) is", remarks)
    said = "recorded" if record.files_are == "seen" else "recorded, size from the shape"
    return ModelNeed(
        name, member.hub_id, member.revision, member.licence or "-", said, record.gated,
        max(size - there, 0), there, size if record.weights == "bin" else 0, shape, record.bits,
    )  # fmt: skip


def _shape_there(home: Path, member: P.Member) -> Shape | None:
    """The shape of a local model, where its folder is there; ``home`` is that of params.yaml."""
    path = in_local_data(member.path)
    config = home / path / "config.json" if path is not None else None
    return Shape.of(read_json(config)) if config is not None and config.is_file() else None


def _asked(name: str, member: P.Member, said: Repository, record: Record | None, remarks: list[str]) -> ModelNeed:
    files = wanted(said.files)
    weights = [f for f in files if f.name.endswith((".bin", ".safetensors"))]
    if not weights:
        raise HubError(f"{said.id}@{said.commit[:12]}: neither safetensors nor .bin weights are there")
    _remark_on_vocabulary(name, [f.name for f in files], remarks)
    _remark_on_licence(name, member, said.licence, "the hub says", remarks)
    size = sum(f.bytes for f in files)
    there = _cached(said.id, said.commit)
    try:
        shape = Shape.of(record.config if record else read_json(hub.fetch_one(said, "config.json", PATIENCE)))
    except HubError as error:
        shape = shape_of(member.stands_for)
        remarks.append(f"{error}; so memory and pools are those of {member.stands_for}")
    return ModelNeed(
        name, said.id, said.commit, member.licence or "-", "the hub", said.gated,
        max(size - there, 0), there, sum(f.bytes for f in weights if f.name.endswith(".bin")), shape,
        _bits(sum(f.bytes for f in weights), shape),
    )  # fmt: skip


def _remark_on_vocabulary(name: str, files: list[str], remarks: list[str]) -> None:
    needed = lacking(files)
    if needed:
        remarks.append(f"zoo.models.{name}: {needed}")


def _remark_on_licence(name: str, member: P.Member, said: str | None, who: str, remarks: list[str]) -> None:
    mine = member.licence or "-"
    if said and said.lower() not in ("other", mine.lower()):
        remarks.append(f"zoo.models.{name}.licence: {mine!r}, but {who} {said!r}")


def _in_cache(name: str, member: P.Member) -> ModelNeed:
    """A model that nothing is recorded of, by what the cache holds of it."""
    snapshot = hub.storage(str(member.hub_id)) / "snapshots" / (member.revision or "-")
    if not hub.complete(snapshot):
        raise HubError(
            f"zoo.models.{name}: nothing is recorded of {member.hub_id}, and the cache has it not; ask the hub"
        )
    sizes = {f.name: f.stat().st_size for f in snapshot.iterdir() if f.is_file()}
    shape = Shape.of(read_json(snapshot / "config.json"))
    pickled = sum(size for file, size in sizes.items() if file.endswith(".bin"))
    weights = pickled + sum(size for file, size in sizes.items() if file.endswith(".safetensors"))
    return ModelNeed(
        name, str(member.hub_id), member.revision, member.licence or "-", "the cache", False,
        0, sum(sizes.values()), pickled, shape, _bits(weights, shape),
    )  # fmt: skip


def _bits(size: int, shape: Shape) -> int:
    """Of a weight, 16 or 32, by the bytes of all."""
    return 16 if size < 3 * shape.parameters else 32


def _own_shape(m: P.Member) -> Shape:
    return Shape(m.family, m.hidden_size, m.intermediate_size, m.layers, m.heads, m.vocabulary)


def _cached(hub_id: str, revision: str | None) -> int:
    """Bytes of a model's files that the cache holds at a commit."""
    snapshot = hub.storage(hub_id) / "snapshots" / (revision or "-")
    return sum(f.stat().st_size for f in snapshot.iterdir() if f.is_file()) if snapshot.is_dir() else 0


def _pools(plan: Plan) -> list[str]:
    """A setting for every quantized pool that the default study makes."""
    found: dict[str, str] = {}
    for setting, _ in plan.pools("default"):
        found.setdefault(plan.variant("quantize", setting), setting)
    return list(found.values())


def _quantized(models: list[ModelNeed], quantize: P.Quantize, blocks: P.Blocks) -> int:
    if quantize.allocates:
        return int(sum(m.shape.parameters for m in models) * quantize.budget_bits / 8)
    bits = {"nf4": 4, "llm_int8": 8}.get(quantize.scheme, quantize.bits)
    precision = Precision({bits: 1.0}, quantize.embedding_bits, quantize.group_size)
    return sum(model_bytes(m.shape, blocks, precision) for m in models)


def _memory(plan: Plan, models: list[ModelNeed], steps: list[Step]) -> tuple[tuple[str, int], ...]:
    out = [("split, its largest table at 32 bit", int(LIBRARIES) + max(_largest(m.shape) for m in models) * 4)]
    if any(step.name == "sensitivity" for step in steps):
        out.append(
            ("sensitivity, a block at 32 bit and what is measured of it", max(_measured(plan, m) for m in models))
        )
    methods = {run.method for run in plan.runs("default")}
    if methods & set(P.ASSEMBLING):
        budget = plan.params.swapper.budget_gb
        searched = [plan.at(run.setting) for run in plan.runs("default") if run.method in P.ASSEMBLING]
        pool = max(_quantized(models, at.quantize, at.blocks) for at in searched)
        out.append(("searching, the pool in memory" if budget is None else "searching, swapper.budget_gb",
                    pool if budget is None else int(budget * 1e9)))  # fmt: skip
    model = next(m for m in models if m.name == plan.params.baselines.model)
    if methods & ONE_MODEL:
        out.append((f"methods on {model.name} alone, at 32 bit", model.shape.parameters * 4))
    if methods & {"ft_oracle", "ft_practical", *P.SHARES}:
        clients = plan.params.federated.clients_per_round
        size = model.shape.parameters * (4 + TRAINED_BYTES * clients)
        out.append((f"fine-tuning {model.name}, {clients} clients of a round at once (at most)", size))
    return tuple(out)


def _measured(plan: Plan, model: ModelNeed) -> int:
    kept, shape = plan.params.sensitivity, model.shape
    block = max(block_bytes(shape, plan.params.blocks, FP16)) * 2
    changes = len({*kept.scores} - {"sparsity", "correlation"})  # a copy of the weights each, let go before the moments
    copies = changes * sum(4 * rows * columns for rows, columns in matrices(shape))
    moments = sensitivity_bytes(shape, len(kept.scores), kept.moments)
    return int(LIBRARIES) + block + max(segments(shape.layers, plan.params.blocks)) * max(copies, moments)


def _largest(shape: Shape) -> int:
    return max(shape.vocabulary, shape.intermediate) * shape.hidden


def _ram() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def table(found: Needs, asked: bool) -> str:
    """The plan as text."""
    models: list[tuple[str, ...]] = [("model", "from", "revision", "licence", "fetch", "cached", "gated", "said by")]
    for m in found.models:
        size, there = _or_dash(m.to_fetch), _or_dash(m.cached)
        gated = "yes" if m.gated else "no"
        models.append((m.name, m.origin, (m.revision or "-")[:12], m.licence, size, there, gated, m.said_by))
    steps: list[tuple[str, ...]] = [("step", "writes", "free", "in")]
    steps += [(s.name, _or_dash(s.bytes), gb(free(s.folder)), str(s.folder)) for s in found.steps]
    memory: list[tuple[str, ...]] = [("memory (weights only)", "needs", "there")]
    memory += [(name, gb(size), gb(found.memory_there)) for name, size in found.memory]
    head = f"hub: {without_secrets(endpoint())}, {'asked' if asked else 'not asked'}"
    lines = [head, "", *_aligned(models), "", *_aligned(steps), "", *_aligned(memory)]
    return "\n".join([*lines, *(["", *found.remarks] if found.remarks else [])])


def _or_dash(size: int) -> str:
    return gb(size) if size else "-"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def refuse_early(found: Needs) -> None:
    """Say in one line what does not fit.

    Raises:
        ArtifactError: a disk is too small for all steps on it, or the memory for one of them.
    """
    disks: dict[int, list[Step]] = {}
    for step in found.steps:
        disks.setdefault(disk_of(step.folder), []).append(step)
    for steps in disks.values():
        size, there = sum(s.bytes for s in steps), free(steps[0].folder)
        if size + SPARE > there:
            named = ", ".join(f"{s.name} {gb(s.bytes)}" for s in steps if s.bytes)
            raise ArtifactError(
                f"does not fit: {gb(size)} on the disk of {steps[0].folder} ({named}), {gb(there)} free"
            )
    for name, size in found.memory:
        if size > found.memory_there:
            raise ArtifactError(f"does not fit: {name} needs {gb(size)} of memory, {gb(found.memory_there)} are there")


def report(path: Path, offline: bool, pinning: bool) -> tuple[str, Needs]:
    """What ``assyllm zoo plan`` prints, and what it found; with ``pinning`` the commits are written into ``path``.

    Raises:
        ArtifactError: one line; with ``pinning``, also if the hub cannot be asked.
    """
    plan = Plan(path)
    if pinning:
        zoo = plan.params.zoo
        of_hub = {n: m for n, m in zoo.models.items() if zoo.source_of(n) == "hub"}
        loose = {n: m for n, m in of_hub.items() if m.revision is None or not COMMIT.fullmatch(m.revision)}
        pin(path, {n: ask(str(m.hub_id), m.revision, PATIENCE).commit for n, m in loose.items()})
        plan = Plan(path)
    from huggingface_hub import constants

    def asked(hub_id: str, revision: str | None) -> Repository:
        return ask(hub_id, revision, PATIENCE)

    found = needs(plan, path.absolute().parent, None if offline or constants.HF_HUB_OFFLINE else asked)
    return table(found, any(m.said_by == "the hub" for m in found.models)), found
