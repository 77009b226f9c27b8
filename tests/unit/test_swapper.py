"""The Block Swapper on real files: the same bits, failures that are told, three pipelines, whole models."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from assyllm import params
from assyllm.artifacts import ArtifactError, output_folder
from assyllm.blocks.pool import Pool
from assyllm.quantizer.pool import open_pool
from assyllm.results import read_table, write_table
from assyllm.swapper.ablation import PIPELINES
from assyllm.swapper.models import under_budget
from assyllm.swapper.plan import POLICIES
from assyllm.swapper.swapper import Swapper, lend
from assyllm.swapper.walks import passed, walk
from conftest import tiny_params
from tiny import zoo


def needed(open_it) -> int:
    """The budget that a refusal names."""
    with pytest.raises(ArtifactError, match="needed") as refusal, open_it(1):
        pass
    return int(str(refusal.value).split(":")[1].split()[0])


@cache
def least(folder: Path) -> int:
    """The smallest budget that a pool takes."""
    return needed(lambda budget: Swapper(folder, budget))


def run(pool: Pool, blocks: list) -> list[torch.Tensor]:
    out = []
    for block in blocks:
        draws = torch.Generator().manual_seed(1)
        mask = torch.ones(3, 8, dtype=torch.bool)
        shape = (3, 8) if block.kind == "start" else (3, 8, block.width)
        hidden = (
            torch.randint(4, 100, shape, generator=draws)
            if block.kind == "start"
            else torch.randn(shape, generator=draws)
        )
        with torch.no_grad():
            out.append(block(hidden, mask))
    return out


@pytest.mark.parametrize("name", ["pool", "pool8"])
@pytest.mark.parametrize("pipeline", [(False, False), (True, False), (True, True)])
def test_blocks_compute_the_same_bits_as_without_swapping(tiny_folder: Path, name: str, pipeline: tuple) -> None:
    pool = open_pool(tiny_folder / name)
    order = [*pool.ids, *reversed(pool.ids), *pool.ids]
    whole = run(pool, [pool.block(block) for block in order])
    budget = least(tiny_folder / name)
    with Swapper(tiny_folder / name, budget, order, preload=pipeline[0], preswap=pipeline[1]) as swapper:
        parts = run(pool, list(swapper))
        assert swapper.peak_bytes <= budget
        assert swapper.bytes_read > budget
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_pool_lends_swapped_blocks_and_takes_its_own_again(tiny_folder: Path) -> None:
    pool = open_pool(tiny_folder / "pool")
    whole = run(pool, [pool.block(block) for block in pool.ids])
    with Swapper(pool, least(tiny_folder / "pool"), ()) as swapper:
        lent = swapper.lend()
        parts = run(lent, [lent.block(block) for block in lent.ids])
        assert next(lent.block(lent.ids[0]).parameters()).is_meta, "an evicted block keeps nothing"
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert pool.lender is None
    settings = params.Swapper(budget_gb=None, policy="plan", window_layers=None, preload=True, preswap=True)
    assert lend(pool, settings).lender is None
    assert lend(pool, settings.model_copy(update={"budget_gb": 1.0})).lender is not None
    named = settings.model_copy(update={"budget_gb": 1.0, "policy": "lru_correlation"})
    related = {(pool.ids[1], pool.ids[0]): 0.5}
    assert lend(pool, named, related).lender.engine._cache.correlation == related
    assert not lend(pool, named).lender.engine._cache.correlation


def test_batches_share_one_read_of_a_layer(tiny_folder: Path) -> None:
    reads = {}
    for batches in (2, 20):
        with Swapper(tiny_folder / "pool", least(tiny_folder / "pool")) as swapper:
            for block in swapper:
                mask = torch.ones(1, 4, dtype=torch.bool)
                start = block.kind == "start"
                hidden = torch.ones(1, 4, dtype=torch.long) if start else torch.ones(1, 4, block.width)
                with torch.no_grad():
                    block.each([(hidden, mask)] * batches)
            reads[batches] = swapper.engine.loads
    assert reads[2] == reads[20] == len(swapper.engine.units)


def test_a_truncated_or_rewritten_file_is_an_error(tiny_folder: Path, tmp_path: Path) -> None:
    for harm in ("truncate", "write"):
        folder = tmp_path / harm
        shutil.copytree(tiny_folder / "pool", folder)
        pool = open_pool(folder)
        file = folder / pool.info(pool.ids[-1]).file
        with Swapper(pool, least(tiny_folder / "pool")) as swapper:
            blocks = list(swapper)
            run(pool, blocks[:1])
            if harm == "truncate":
                os.truncate(file, file.stat().st_size // 2)
            else:
                with open(file, "r+b") as handle:
                    handle.seek(-4, os.SEEK_END)
                    handle.write(b"harm")
            with pytest.raises(ArtifactError, match="changed while in use"):
                run(pool, blocks[1:])
            with pytest.raises(ArtifactError, match="changed while in use"):
                run(pool, blocks[1:])


def test_a_replaced_file_is_still_the_old_one(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder / "pool", tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    whole = run(pool, [pool.block(block) for block in pool.ids])
    with Swapper(tmp_path / "pool", least(tiny_folder / "pool")) as swapper:
        for block in pool.ids:
            file = tmp_path / "pool" / pool.info(block).file
            (tmp_path / "new").write_bytes(b"something else")
            os.replace(tmp_path / "new", file)
        parts = run(pool, list(swapper))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_flipped_bit_is_found_when_the_pool_is_opened(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder / "pool", tmp_path / "pool")
    file = sorted((tmp_path / "pool" / "blocks").iterdir())[3]
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(ArtifactError, match=rf"{file.name}.*sha256"):
        Swapper(tmp_path / "pool", 10**9)


def test_the_budget_may_change_while_another_thread_computes(tiny_folder: Path) -> None:
    pool = open_pool(tiny_folder / "pool")
    floor = least(tiny_folder / "pool")
    whole = run(pool, [pool.block(block) for block in pool.ids * 3])
    with Swapper(pool, 10 * floor, pool.ids * 3) as swapper:
        stop = threading.Event()

        def change() -> None:
            budgets = [floor, 5 * floor, 2 * floor]
            while not stop.wait(0.001):
                budgets.append(budgets.pop(0))
                swapper.set_budget(budgets[-1])
                assert swapper.engine.resident_bytes <= budgets[-1]

        thread = threading.Thread(target=change)
        thread.start()
        try:
            parts = run(pool, list(swapper))
        finally:
            stop.set()
            thread.join()
        with pytest.raises(ArtifactError, match=f"{floor} needed"):
            swapper.set_budget(floor - 1)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_tensor_that_is_kept_stops_the_swapper_instead_of_changing(tiny_folder: Path) -> None:
    with Swapper(tiny_folder / "pool", least(tiny_folder / "pool")) as swapper:
        first, *rest = swapper.accesses(swapper.plan)
        kept = next(iter(swapper.engine.use(first).values()))
        before = kept.clone()
        with pytest.raises(ArtifactError, match="still held"):
            [swapper.engine.use(unit) is None for unit in rest]
    assert torch.equal(kept, before)


def test_a_layer_called_outside_its_turn_is_an_error_not_garbage(tiny_folder: Path) -> None:
    """torch computes ``linear`` of a meta weight without a bias in silence, which Llama's layers are made of."""
    with Swapper(tiny_folder / "pool", least(tiny_folder / "pool")) as swapper:
        layer = swapper.block("llama:1-2").stack[0]
        inner = [module for module in layer.modules() if module._parameters and getattr(module, "bias", None) is None]
        assert any(isinstance(module, torch.nn.Linear) for module in inner)
        for module in inner:
            with pytest.raises(ArtifactError, match="llama:1-2/0: called outside its turn"), torch.no_grad():
                module(torch.ones(2, 8))


def test_of_two_swappers_the_one_that_lends_goes_on(tiny_folder: Path) -> None:
    pool = open_pool(tiny_folder / "pool")
    budget = least(tiny_folder / "pool")
    with Swapper(pool, budget, ()) as second:
        with Swapper(pool, budget, ()) as first:
            first.lend()
            second.lend()
        assert pool.lender is second
    assert pool.lender is None


def test_unknown_names_are_told(tiny_folder: Path) -> None:
    with pytest.raises(ArtifactError, match="no block 'gpt:0-1'"):
        Swapper(tiny_folder / "pool", 10**9, ["gpt:0-1"])
    with pytest.raises(ArtifactError, match="policy 'fifo': not one of plan, belady, lru"):
        Swapper(tiny_folder / "pool", 10**9, policy="fifo")
    with pytest.raises(ArtifactError, match="window: 0"):
        Swapper(tiny_folder / "pool", 10**9, window=0)


def test_the_trace_tells_the_pipelines_apart(tiny_folder: Path) -> None:
    """Storage throttled, so that waits are longer than noise: only with pre-loading are reads under computation."""
    waited = {}
    for preload in (False, True):
        with Swapper(tiny_folder / "pool", 10**6, ["llama:0-1", "llama:1-2", "llama:2-3"], preload=preload,
                     preswap=preload, bytes_per_s=2e6) as swapper:  # fmt: skip
            for unit in swapper.accesses(swapper.plan):
                swapper.engine.use(unit)
                threading.Event().wait(0.02)
        waited[preload] = sum(e.end - e.start for e in swapper.events if e.kind == "wait")
        loads = [e for e in swapper.events if e.kind == "load"]
        computes = [e for e in swapper.events if e.kind == "compute"]
        overlap = sum(max(0.0, min(a.end, b.end) - max(a.start, b.start)) for a in loads for b in computes)
        assert (overlap > 0.01) == preload
        assert sum(e.bytes for e in loads) == sum(swapper.engine.sizes[e.unit] for e in loads)
    assert waited[True] < waited[False]


@pytest.mark.parametrize("name", sorted(zoo.FAMILY))
def test_any_model_runs_under_a_budget_with_the_same_bits(tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    made = zoo.model(name, 300, 1).to(torch.bfloat16 if name == "vicuna" else torch.float32)
    made.save_pretrained(tmp_path, max_shard_size="40KB")  # sharded: a layer may lie in two files
    kind = AutoModelForMaskedLM if "bert" in name else AutoModelForCausalLM
    whole = kind.from_pretrained(tmp_path, dtype="auto").eval()
    ids = torch.randint(4, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    budget = needed(lambda b: under_budget(tmp_path, b))
    with torch.no_grad(), under_budget(tmp_path, budget) as model:
        for _ in range(2):
            assert torch.equal(model(ids).logits, whole(ids).logits)
        if name == "llama":
            options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 1}
            assert torch.equal(model.generate(ids, **options), whole.generate(ids, **options))
        assert model.swapper.peak_bytes <= budget < sum(model.swapper.sizes.values())
    with torch.no_grad(), pytest.raises(ArtifactError, match="closed"):
        model(ids)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 8}))
    with (
        pytest.raises(ArtifactError, match=r"in its files, \[\d+, \d+\] by its config"),
        under_budget(tmp_path, budget),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("bert", "LayerNorm.weight", "LayerNorm.gamma"), ("opt", "model.", ""), ("llama", "model.", "")],
)
def test_weights_under_their_other_names_are_found(tmp_path: Path, name: str, old: str, new: str) -> None:
    zoo.model(name, 300, 1).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    ids = torch.randint(4, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), under_budget(tmp_path, 10**9) as model:
        before = model(ids).logits
    renamed = {key.replace(old, new, 1): tensor for key, tensor in stored.items()}
    assert renamed.keys() != stored.keys()
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad(), under_budget(tmp_path, 10**9) as model:
        assert torch.equal(model(ids).logits, before)


def test_weights_of_two_dtypes_are_one_line(tmp_path: Path) -> None:
    zoo.model("llama", 300, 1).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    mixed = {key: tensor if "norm" in key else tensor.bfloat16() for key, tensor in stored.items()}
    save_file(mixed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="one dtype"), under_budget(tmp_path, 10**9):
        pass


@pytest.mark.parametrize(
    ("argument", "value"),
    [("budget_bytes", "4GB"), ("budget_bytes", math.nan), ("budget_bytes", 0), ("host", "tape"), ("bytes_per_s", 0),
     ("device", "zz"), ("device", "meta")],
)  # fmt: skip
def test_odd_arguments_are_one_line(tiny_folder: Path, argument: str, value: object) -> None:
    odd = {"budget_bytes": 10**9, argument: value}
    with pytest.raises(ArtifactError, match=f"^{argument}: "):
        Swapper(tiny_folder / "pool8", **odd)
    with pytest.raises(ArtifactError, match=f"^{argument}: "), under_budget(tiny_folder / "zoo" / "llama", **odd):
        pass


def test_the_walk_of_a_round() -> None:
    chains = [(("a", "b"), ("x", "y")), (("a", "c"), ("x",))]
    assert walk(chains, "candidate") == ["a", "b", "x", "y", "c", "x"]
    assert walk(chains, "block") == ["a", "b", "c", "x", "y"]


def test_the_stage_times_pipelines_and_counts_reads(tiny_folder: Path, tmp_path: Path) -> None:
    from assyllm.stages import score, swap

    p = tiny_params(swap={"layers": 4, "hidden_size": 64, "storage_mb_per_s": 20.0, "passes": 2})
    text = params.sections_json(p, score.SECTIONS)
    score.run(text, "c", tiny_folder / "pool", tiny_folder / "tasks", tiny_folder / "partition", 0, tmp_path / "s")
    pool = open_pool(tiny_folder / "pool")
    with output_folder(tmp_path / "run") as run_folder:
        chain = " ".join(info.id for info in pool.of_model("llama"))
        rows = [
            {"task": "piqa", "round": i, "phase": "select", "clients": 5, "chain": chain, "candidates": "opt:1-2"}
            for i in (1, 2)
        ]
        write_table(run_folder / "walk.csv", rows)
    swap.run(params.sections_json(p, swap.SECTIONS), "c", tiny_folder / "pool", tmp_path / "run", [tmp_path / "s"],
             tmp_path / "out")  # fmt: skip
    table = read_table(tmp_path / "out" / "swap_ablation.csv")
    times = [row for row in table if row["what"] == "time"]
    assert {row["pipeline"] for row in times} == set(PIPELINES)
    assert all(int(row["peak_bytes"]) <= int(row["budget_bytes"]) for row in times)
    reads = [row for row in table if row["what"] == "reads"]
    assert all(int(row["bytes"]) >= int(row["least_bytes"]) for row in reads)
    assert {row["policy"] for row in reads} == {*POLICIES, "plan_window"}
    events = read_table(tmp_path / "out" / "swap_timeline.csv")
    assert {row["kind"] for row in events} == {"load", "wait", "compute", "evict"}


def test_blocks_that_read_the_text_are_passed_once_whatever_chains_asked() -> None:
    asked = [(["a:0-1"], ["a:1-2", "b:0-1", "b:0-1+b:1-2"]), (["c:0-1"], ["b:0-1", "d:0-1", "c:2-3"])]
    alone = [(["b:0-1", "b:1-2"], []), (["d:0-1"], [])]
    assert passed(asked) == [(["a:0-1"], ["a:1-2"]), (["c:0-1"], ["c:2-3"]), *alone]
