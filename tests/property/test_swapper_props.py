"""The swapper's invariants: the budget at every moment, the optimum's reads, the same bytes whatever happens."""

from __future__ import annotations

import tempfile
from itertools import groupby, product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from safetensors.torch import save_file

from assyllm.artifacts import ArtifactError
from assyllm.swapper.engine import Engine
from assyllm.swapper.memory import HostMemory, Unit
from assyllm.swapper.plan import POLICIES, Cache, count, needed_bytes
from assyllm.swapper.reader import Reader
from assyllm.zoo.header import header

FOLDER = Path(tempfile.mkdtemp(prefix="swapper"))
COUNTS = (900, 3000, 3000, 5000, 1200, 12000)
WHOLE = {
    f"b{i // 2}/{i % 2}": {
        "w": torch.randn(n, generator=torch.Generator().manual_seed(i)),
        "scale": torch.randn(n // 7, generator=torch.Generator().manual_seed(i + 50)).half(),
    }
    for i, n in enumerate(COUNTS)
}
FILE = FOLDER / "pool.safetensors"
save_file({f"{unit}.{name}": t for unit, tensors in WHOLE.items() for name, t in tensors.items()}, FILE)
ENTRIES = header(FILE)
UNITS = [Unit(unit, {name: ENTRIES[f"{unit}.{name}"] for name in tensors}) for unit, tensors in WHOLE.items()]
SIZES = {unit.id: HostMemory().size(unit) for unit in UNITS}
NEEDED = needed_bytes(SIZES)
units = st.sampled_from(sorted(SIZES))


def optimum(plan: tuple[str, ...], slots: int) -> int:
    """Fewest reads of equal units with ``slots`` of them in memory: every choice tried (memory demand-filled)."""
    states = {frozenset(): 0}
    for unit in plan:
        after: dict[frozenset, int] = {}
        for held, reads in states.items():
            choices = [held] if unit in held or len(held) < slots else [held - {gone} for gone in held]
            for rest in choices:
                key, cost = rest | {unit}, reads + (unit not in held)
                after[key] = min(cost, after.get(key, cost))
        states = after
    return min(states.values())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=14).map(tuple), st.integers(2, 4))
def test_plan_and_belady_read_what_the_optimum_reads(plan: tuple[str, ...], slots: int) -> None:
    sizes = dict.fromkeys("abcde", 10)
    least = optimum(plan, slots)
    for policy in ("plan", "belady"):
        steps = count(plan, sizes, 10 * slots, policy, overlap=False)
        assert sum(not step.hit for step in steps) == least


@settings(max_examples=60, deadline=None)
@given(
    st.lists(units, min_size=1, max_size=40), st.integers(0, 60_000), st.sampled_from(sorted(POLICIES)), st.booleans()
)
def test_decisions_stay_within_the_budget(plan: list[str], extra: int, policy: str, overlap: bool) -> None:
    cache = Cache(SIZES, NEEDED + extra, policy, overlap=overlap, window=5)
    cache.extend(plan)
    for i, unit in enumerate(plan):
        before = set(cache.resident)
        step = cache.access()
        assert cache.bytes <= NEEDED + extra
        assert step.hit == (unit in before)
        assert unit in cache.resident
        if overlap and i:
            assert plan[i - 1] in cache.resident, "what computes while the next is read was evicted"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(units, min_size=1, max_size=25),
    st.integers(0, 60_000),
    st.sampled_from([(False, False), (True, False), (True, True)]),
    st.sampled_from(sorted(POLICIES)),
)
def test_engine_reads_what_was_counted_and_gives_the_files_bytes(
    plan: list[str], extra: int, setting: tuple[bool, bool], policy: str
) -> None:
    preload, preswap = setting
    reader = Reader([FILE])
    engine = Engine(UNITS, HostMemory(), reader, NEEDED + extra, plan, preload=preload, preswap=preswap, policy=policy)
    for unit in plan:
        tensors = engine.use(unit)
        assert all(torch.equal(tensors[name], whole) for name, whole in WHOLE[unit].items())
        del tensors
    engine.close()
    distinct = [unit for unit, _ in groupby(plan)]
    steps = count(distinct, SIZES, NEEDED + extra, policy, overlap=preload and preswap)
    assert [e.unit for e in engine.events if e.kind == "load"] == [step.unit for step in steps if not step.hit]
    assert all(event.resident <= NEEDED + extra for event in engine.events)
    assert engine.peak_bytes <= NEEDED + extra


class Model(RuleBasedStateMachine):
    """The engine against the plain dictionary of all tensors: any order of requests, plans and budgets."""

    @initialize(
        extra=st.integers(0, 60_000),
        plan=st.lists(units, max_size=12),
        setting=st.sampled_from([(False, False), (True, False), (True, True)]),
        repeat=st.booleans(),
        policy=st.sampled_from(sorted(POLICIES)),
    )
    def start(self, extra: int, plan: list[str], setting: tuple[bool, bool], repeat: bool, policy: str) -> None:
        self.budget = NEEDED + extra
        self.engine = Engine(
            UNITS, HostMemory(), Reader([FILE]), self.budget, plan,
            preload=setting[0], preswap=setting[1], repeat=repeat and bool(plan), policy=policy, window=4,
        )  # fmt: skip
        self.failed = False

    @rule(unit=units)
    def use(self, unit: str) -> None:
        tensors = self.engine.use(unit)
        for name, whole in WHOLE[unit].items():
            assert torch.equal(tensors[name], whole)

    @rule(plan=st.lists(units, max_size=6))
    def extend(self, plan: list[str]) -> None:
        self.engine.extend(plan)

    @rule(extra=st.integers(-9000, 60_000))
    def set_budget(self, extra: int) -> None:
        if extra < 0:
            with pytest.raises(ArtifactError, match=f"{NEEDED} needed"):
                self.engine.set_budget(NEEDED + extra)
            return
        self.engine.set_budget(NEEDED + extra)
        self.budget = NEEDED + extra
        assert self.engine.resident_bytes <= self.budget

    @rule()
    def finish(self) -> None:
        self.engine.finish()

    @invariant()
    @precondition(lambda self: hasattr(self, "engine"))
    def within_budget(self) -> None:
        with self.engine._changed:
            held = sum(SIZES[unit] for unit in self.engine._loaded)
            assert held <= self.engine.resident_bytes <= self.budget

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()


Model.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestModel = Model.TestCase


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_byte_of_a_unit_lies_in_its_extents(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(ENTRIES)), min_size=1, unique=True))
    unit = Unit("b/0", {name: ENTRIES[name] for name in chosen})
    reader = Reader([FILE], direct=data.draw(st.sampled_from([None, False])))
    loaded = HostMemory().load(unit, reader, [])
    for name in chosen:
        block, rest = name.split(".")
        assert torch.equal(loaded.tensors[name], WHOLE[block][rest])
    reader.close()


def test_a_scan_is_hopeless_for_lru_and_not_for_the_plan() -> None:
    plan = [f"b/{i}" for _, i in product(range(10), range(40))]
    sizes = dict.fromkeys(plan, 1)
    hits = {p: sum(s.hit for s in count(plan, sizes, 20, p)[40:]) / 360 for p in ("lru", "plan", "belady")}
    assert hits["lru"] == 0
    assert hits["plan"] == hits["belady"] > 0.45
