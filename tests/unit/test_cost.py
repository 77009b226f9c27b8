"""The cost model: the methods' own steps without memory agree with real allocations, and decide participation."""

from __future__ import annotations

import gc
import json
from collections import Counter
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from assyllm import params as P
from assyllm import readme
from assyllm.adapter.cross_attention import CrossAttentionAdapter
from assyllm.adapter.fixed_attention import FixedAttentionAdapter
from assyllm.adapter.linear import LinearAdapter, LinearSums
from assyllm.artifacts import ArtifactError
from assyllm.assembly.head import HeadSums
from assyllm.baselines import registry
from assyllm.cost import trace
from assyllm.cost.devices import Device, compute_seconds, device, devices, on_device, step_seconds
from assyllm.cost.estimate import estimate
from assyllm.cost.methods import METHODS, STEPS, step_of
from assyllm.cost.nf4 import Nf4Linear, dequantize
from assyllm.cost.participation import participation, reading_of
from assyllm.cost.point import Point, device_point, measure_point
from assyllm.cost.pool_sizes import model_table, pool_table
from assyllm.cost.same_step import taken_over
from assyllm.cost.selection import Residency
from assyllm.cost.shapes import CONFIGS, SHAPES, Shape, config_of, shape_of
from assyllm.cost.step import Reading, fakes, measure
from assyllm.cost.walked import TRAINING, Block, Prices, Spent, spent
from assyllm.figures import style
from assyllm.zoo.forward import ENCODERS

PARAMS = P.load(Path(__file__).parents[2] / "params.yaml")
GIB = 2**30
TINY = {
    "llama": {
        "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": 128, "tie_word_embeddings": False,
    },
    "opt": {
        "model_type": "opt", "vocab_size": 320, "hidden_size": 64, "ffn_dim": 256, "word_embed_proj_dim": 64,
        "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128,
    },
    "bert": {
        "model_type": "bert", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": 128, "type_vocab_size": 2,
    },
}  # fmt: skip
SMALL = Reading(8, 64, "adamw", 4)
PART = Residency(2, 1, 8, 32)


@pytest.mark.parametrize(
    ("shape", "parameters"), [("llama-7b", 6_738_415_616), ("opt-6.7b", 6_658_473_984)]
)  # the models' published counts
def test_parameter_counts_are_the_models_own(shape: str, parameters: int) -> None:
    assert SHAPES[shape].parameters == parameters


def test_pool_is_41_2_gb_in_16_bit() -> None:
    assert sum(2 * shape.parameters for shape in SHAPES.values()) / 1e9 == pytest.approx(41.2, abs=0.05)


def real_peak(method: str, config: dict, reading: Reading) -> int:
    """Bytes at the peak of a real step on the CPU, by the profiler's allocator events."""
    step = step_of(method, config, reading, PART)
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for ts in step.held.values() for t in ts}
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        mark = torch.empty(12_345, dtype=torch.uint8)  # a size of its own: here the steps begin
        step.run()
        step.run()  # what the first one leaves behind has a size that the profiler knows
        del mark
    events, left = [], list(seen.profiler.kineto_results.experimental_event_tree())
    for event in left:
        left += event.children
        if event.tag == _EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.total_allocated, event.extra_fields.alloc_size))
    events.sort()
    start = [size for *_, size in events].index(12_345)
    most = max(total for _, total, _ in events[start:]) - events[start][1]
    return sum(s.nbytes() for s in storages.values()) + most


@pytest.mark.parametrize(
    ("method", "family"),
    [("ft_oracle", "llama"), ("ft_oracle", "opt"), ("ft_oracle", "bert"), ("lora", "llama"), ("fedadapter", "opt"),
     ("fwdllm", "llama"), ("recomputation", "llama"), ("assyllm_paper", "llama"), ("assyllm_paper", "bert")],
)  # fmt: skip
def test_peak_is_within_1_percent_of_what_the_allocator_saw(method: str, family: str) -> None:
    with fakes():
        predicted = measure(step_of(method, TINY[family], SMALL, PART), granule=1).total
    assert predicted == pytest.approx(real_peak(method, TINY[family], SMALL), rel=0.01)


def test_categories_are_what_they_are_called() -> None:
    shape = Shape.of(TINY["llama"])
    with fakes():
        peak = measure(step_of("ft_oracle", TINY["llama"], SMALL), granule=1).peak
        none = measure(step_of("ft_oracle", TINY["llama"], Reading(8, 64, "sgd", 4)), granule=1).peak
        lora = measure(step_of("lora", TINY["llama"], SMALL), granule=1).peak
    backbone = shape.parameters - shape.vocabulary * shape.hidden  # no language head
    assert peak["parameters"] == pytest.approx(4 * backbone, rel=0.01)
    assert peak["optimizer"] == pytest.approx(8 * backbone, rel=0.01)
    assert none["optimizer"] == 0
    assert lora["optimizer"] < 0.1 * peak["optimizer"]
    assert lora["activations"] > 0


def test_flops_are_torchs_own_count() -> None:
    with fakes():
        ours = measure(step_of("ft_oracle", TINY["llama"], SMALL)).flops
        step = step_of("ft_oracle", TINY["llama"], SMALL)
        with FlopCounterMode(display=False) as counter:
            step.run()
    assert counter.get_total_flops() <= ours  # it has no formula for the CPU's fused attention
    attention = 3.5 * 2 * 2 * 8 * 64 * 64 * 64 * 4  # forward and 2.5 times it backward, 4 layers
    assert ours - counter.get_total_flops() == pytest.approx(attention, rel=1e-6)


@pytest.mark.parametrize("method", ["ft_oracle", "swapping", "adapter_tuning", "joined_scoring"])
def test_two_shallow_models_tell_the_deep_one(method: str) -> None:
    config = TINY["llama"] | {"num_hidden_layers": 16}
    deep, line = (measure_point(method, config, SMALL, None, deep) for deep in (True, False))
    assert line.total == pytest.approx(deep.total, rel=1e-9)
    assert line.flops == deep.flops
    assert line.stored == pytest.approx(deep.stored, rel=1e-9)


def test_training_adapters_keeps_every_layers_input_and_one_layer() -> None:
    config = TINY["llama"] | {"num_hidden_layers": 16}
    wide = replace(SMALL, batch=64)
    scoring = measure_point("assyllm", config, wide)
    training = device_point("assyllm_paper", config, wide, Residency())
    states = 64 * SMALL.tokens * config["hidden_size"] * SMALL.bytes_per_weight
    kept = 12 + 3  # inputs of the layers behind the first adapter, and of the three adapters
    assert training.peak["activations"] >= (kept - 1) * states
    assert training.total > scoring.total
    assert training.flops == scoring.flops  # its time is scoring's


@pytest.mark.parametrize(("family", "patterns"), [("llama", 3), ("bert", 4)])
def test_scoring_holds_an_adapter_with_every_block_but_the_first(family: str, patterns: int) -> None:
    config = TINY[family] | {"num_hidden_layers": 16}
    wide, kept, width = replace(SMALL, batch=64), Residency(4, 2, 8), TINY[family]["hidden_size"]
    bare, point = measure_point("assyllm", config, wide, kept), device_point("assyllm", config, wide, kept)
    adapter = (patterns * width * width + 16 * 2 * width + width) * wide.bytes_per_weight
    states = 64 * wide.tokens * width * wide.bytes_per_weight
    more = point.peak["parameters"] - bare.peak["parameters"]
    assert adapter - 2048 <= more <= 2 * adapter + 4096  # of the two blocks in memory; allocations are rounded
    assert point.peak["temporary"] >= bare.peak["temporary"] + states  # the next model's embedding of the text
    assert point.operations == bare.operations  # walks count adapters' work (cost.walked)


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("method", ["assyllm", "joined_scoring", "fwdllm"])
def test_what_is_logged_again_is_as_it_was_traced(family: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, kept = TINY[family] | {"num_hidden_layers": 6}, Residency(layers=1, bits=6, group_size=32)

    def traced() -> tuple[dict[str, int], Counter]:
        with fakes():
            report = measure(step_of(method, config, Reading(8, 64, directions=3), kept))
        return report.peak, report.operations

    trace._temporaries.clear()
    first, again = traced(), traced()
    for user in ("selection", "methods"):
        monkeypatch.setattr(f"assyllm.cost.{user}.repeated", lambda key, run: run())
    known = len(trace._temporaries)
    assert first == again == traced()
    assert known == len(trace._temporaries)
    assert known == 1 if method == "fwdllm" else known > 3


def test_what_was_traced_on_fakes_is_run_on_a_device() -> None:
    def logged() -> int:
        step = step_of("assyllm", TINY["bert"], Reading(2, 16), Residency(layers=1, bits=6, group_size=32))
        with trace.Trace() as found:
            step.run()
        return sum(found.operations.values())

    with fakes():
        logged()
    again = logged()
    trace._temporaries.clear()
    assert again == logged()
    assert not trace._temporaries


@pytest.mark.parametrize("method", ["lora", "fedadapter", "fwdllm"])
def test_an_int8_base_takes_half_the_frozen_memory(method: str) -> None:
    def held(method: str, bits: int) -> int:
        with fakes():
            step = step_of(method, TINY["llama"], Reading(8, 64, "sgd", 2, base_bits=bits))
            own = {t.untyped_storage()._cdata: t for t in step.held["parameters"]}
            return sum(t.numel() * t.element_size() for t in own.values())

    weights = 4 * (4 * 64 * 64 + 3 * 64 * 160)  # of the linear layers of four decoder layers: 2 bytes become 1
    scales = 4 * 4 * (4 * 64 + 2 * 160 + 64)  # 4 bytes a row
    assert held(method, 16) - held(method, 8) == weights - scales
    assert held("ft_oracle", 16) == held("ft_oracle", 8)  # what is trained has no INT8


def test_adapters_are_counted_as_they_are_trained() -> None:
    def point(method: str, **adapters: Any) -> Point:
        return measure_point(method, TINY["llama"], replace(SMALL, **adapters))

    few, all_layers = point("lora"), point("lora", targets="all")
    assert all_layers.total > few.total
    head = 2 * 64 * 4  # bytes of the scoring head, which travels too
    width, inner, layers = 64, 160, 4
    assert few.traffic[0] == layers * 2 * 8 * (width + width) * 4 + head
    linear = 4 * (width + width) + 3 * (width + inner)
    assert all_layers.traffic[0] == layers * 8 * linear * 4 + head
    half = {"targets": "all", "bytes_per_weight": 2}  # over 4-bit weights too adapters are of the reading's precision
    assert point("qlora", **half).traffic == point("lora", **half).traffic
    assert point("lora", rank=4).traffic[0] - head == (few.traffic[0] - head) / 2
    one, four = point("fwdllm", rank=1), point("fwdllm", rank=1, directions=4)
    assert four.flops / one.flops == pytest.approx(9 / 3, rel=0.02)  # two passes a direction, and one for the head
    assert four.total == pytest.approx(one.total, rel=0.05)


def test_cost_tables_read_the_adapters_of_the_runs() -> None:
    reading = {m: reading_of(PARAMS.cost, PARAMS.frozen_base, PARAMS.baselines.low_rank(m)) for m in METHODS}
    assert (reading["lora"].targets, reading["qlora"].targets) == ("all", "all")
    assert (reading["fwdllm"].rank, reading["fwdllm"].directions) == (1, 4)
    assert reading["ft_oracle"] == reading["assyllm"]


def test_tables_of_an_equal_step_are_taken_over() -> None:
    fleet = PARAMS.fleet
    rows = [
        {"method": "ft_oracle", "peak_gb": str(peak), "memory_gb": "8", "participates": "1", "model": "llama"}
        for peak in (7.4, 7.6)
    ]
    found = taken_over("ft_practical", rows, fleet)
    assert [row["participates"] for row in found] == [1, 0]  # 0.5 GB are the system's
    assert {row["method"] for row in found} == {"ft_practical"}
    assert [row["participates"] for row in taken_over("lora_all", rows, fleet)] == [1, 1]


def test_nf4_layer_computes_what_bitsandbytes_does() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    linear = torch.nn.Linear(128, 96)
    theirs = bitsandbytes.nn.Linear4bit(128, 96, compute_dtype=torch.float32, quant_type="nf4")
    theirs.load_state_dict(linear.state_dict())
    theirs.support_avx512bf16_for_cpu = False
    theirs = theirs.to("cpu")
    ours = Nf4Linear.of(theirs)
    x = torch.randn(5, 128, requires_grad=True)
    for layer in (ours, theirs):
        out = layer(x)
        found = out.detach(), torch.autograd.grad(out.pow(2).sum(), x)[0]
        if layer is ours:
            kept = found
    assert torch.equal(kept[0], found[0])
    assert torch.equal(kept[1], found[1])
    empty = Nf4Linear(linear)  # what the cost model builds has the sizes of what bitsandbytes made
    assert {n: t.shape for n, t in empty.state_dict().items()} == {n: t.shape for n, t in ours.state_dict().items()}
    stored = (ours.weight.view(-1), ours.maxima, ours.outer, ours.code, ours.offset)
    assert (dequantize(*stored, [96, 128], torch.float32) - linear.weight).abs().max() < 0.02


def test_full_fine_tuning_of_llama_7b_is_known_arithmetic() -> None:
    point = measure_point("ft_oracle", CONFIGS["llama-7b"], Reading(), deep=False)
    tokens = 16 * 256
    assert point.flops == pytest.approx(6 * 6.607e9 * tokens, rel=0.02)  # 6 N D, embeddings and attention aside
    assert point.total / GIB == pytest.approx(35.5, rel=0.01)


def share(rows: list[dict], model: str) -> float:
    return sum(row["share"] * row["participates"] for row in rows if row["model"] == model)


def test_participation_is_the_papers_figure_1() -> None:
    zoo = PARAMS.zoo.model_copy(update={"models": {n: PARAMS.zoo.models[n] for n in ("llama", "opt")}})

    def rows(method: str) -> list[dict]:
        return participation(method, zoo, PARAMS.blocks, PARAMS.fleet, PARAMS.cost, PARAMS.quantize, PARAMS.frozen_base)

    practical = rows("ft_practical")
    assert share(practical, "llama") == pytest.approx(0.10)
    assert share(practical, "opt") == pytest.approx(0.25)
    assert {row["source"] for row in practical} == {"modelled"}


def test_a_pool_of_some_members_is_counted_as_that() -> None:
    small = PARAMS.blocks.changed(members=["bert", "roberta"])
    declared = (PARAMS.fleet, PARAMS.cost, PARAMS.quantize, PARAMS.frozen_base)
    peak = {row["model"]: row["peak_gb"] for row in participation("ft_practical", PARAMS.zoo, small, *declared)}
    assert peak["pool"] == peak["roberta"] < peak["llama"]
    full, own = pool_table(PARAMS.zoo, PARAMS.blocks)[0], pool_table(PARAMS.zoo, small)[0]
    assert 40 < full["size_gb"] < 42
    assert 0.8 < own["size_gb"] < 1
    assert {row["model"] for row in model_table(PARAMS.zoo, small)} == {"bert", "roberta"}


def test_rows_longer_than_a_member_reads_are_refused() -> None:
    declared = (PARAMS.fleet, PARAMS.cost.changed(tokens=513), PARAMS.quantize, PARAMS.frozen_base)
    with pytest.raises(ArtifactError, match=r"cost.tokens: 513 is more than the 512 that bert-base"):
        participation("lora", PARAMS.zoo, PARAMS.blocks, *declared)


def test_roofline_takes_the_slower_of_computing_and_moving() -> None:
    on = Device("x", "x", flops=100.0, bandwidth=10.0, memory_gb=1, storage=2.0, watts=3.0)
    even = {"matmul": 1.0, "attention": 1.0, "bandwidth": 1.0}
    assert compute_seconds({("matmul", 1000, 10): 2}, on, even) == 20
    assert compute_seconds({("matmul", 10, 1000): 1, ("elementwise", 0, 10): 3}, on, even) == 103
    assert step_seconds(5.0, 8.0, on, overlapped=True) == 5
    assert step_seconds(5.0, 8.0, on, overlapped=False) == 9


def test_a_device_is_taken_from_what_is_timed_on_all() -> None:
    point = measure_point("lora", TINY["llama"], SMALL)
    (row,) = on_device([{"method": "lora", **point.times(), "source": "modelled"}], "orin")
    assert list(row) == ["method", "device", "step_s", "step_j", "source"]
    on = device("orin")
    assert float(row["step_s"]) == pytest.approx(point.seconds(on))
    assert float(row["step_j"]) == pytest.approx(point.seconds(on) * on.watts)
    assert point.seconds(on) != point.seconds(device("tx2"))


def test_every_device_number_is_positive() -> None:
    assert {"tx2", "nano", "a100", "h200", "phone"} <= set(devices())
    assert all(min(d.flops, d.bandwidth, d.memory_gb, d.storage, d.watts) > 0 for d in devices().values())


def test_message_sizes_are_those_of_the_messages() -> None:
    sums = LinearSums.zeros(6, 4)
    below = 15  # the diagonal of a 6 x 6 matrix
    assert sums.bytes == 4 * (sum(part.numel() for part in sums.parts()) - below)
    assert LinearAdapter(torch.zeros(6, 4), torch.zeros(4)).bytes == 4 * (6 * 4 + 4)


POOL = [f"{model}:{i}-{i + 1}" for model, n in (("llama", 4), ("opt", 4), ("bert", 3)) for i in range(n)]


def prices(method: str) -> Prices:
    return Prices(PARAMS.zoo, PARAMS.blocks, POOL, "llama", PARAMS.assembling.of(method), 2)


def test_a_blocks_work_is_its_share_of_the_real_models_layers() -> None:
    found, llama, bert = prices("assyllm"), SHAPES["llama-7b"], SHAPES["bert-base"]
    assert found.work([Block.of(name) for name in POOL[:4]]) == pytest.approx(1)
    small = bert.layers * bert.layer_parameters / (llama.layers * llama.layer_parameters)
    assert found.work([Block.of("bert:1-2")] * 3) == pytest.approx(small)
    assert sum(found.candidates(Block.of(name)) for name in POOL) == pytest.approx(6 + 6 + 4)


@pytest.mark.parametrize("reading", [Reading(16, 256), Reading(1, 64)], ids=["peak above", "peak at the embedding"])
@pytest.mark.parametrize("method", ["recomputation", "swapping"])
@pytest.mark.parametrize("shape", ["bert-base", "roberta-large"])
def test_what_streams_layer_by_layer_is_as_at_its_depth(shape: str, method: str, reading: Reading) -> None:
    assert device_point(method, CONFIGS[shape], reading, Residency()) == measure_point(method, CONFIGS[shape], reading)


def test_a_state_a_layer_overtakes_a_peak_elsewhere() -> None:
    def total(layers: int) -> float:
        return measure_point(
            "swapping", CONFIGS["roberta-large"] | {"num_hidden_layers": layers}, Reading(16, 256)
        ).total

    assert total(3) == total(4) < total(24) / 1.2  # no line leads from the first two to the third


def test_an_encoders_odd_batch_has_as_many_rows() -> None:
    one, two, three = (
        device_point("zero_shot", CONFIGS["bert-base"], Reading(batch=n), Residency()).flops for n in (1, 2, 3)
    )
    assert (two, three) == pytest.approx((2 * one, 3 * one), rel=1e-3)


def test_a_control_needs_what_its_method_does() -> None:
    ours, control = (
        device_point(m, CONFIGS["bert-base"], Reading(), Residency()) for m in ("assyllm", "random_blocks")
    )
    assert ours == control


@pytest.mark.parametrize(
    ("last", "block"), [("llama:0-1", "bert:1-2"), ("bert:0-1", "opt:2-3"), ("bert:0-1", "bert:2-3")]
)
def test_a_joins_weights_are_the_adapters_own(last: str, block: str) -> None:
    voted, probed = prices("assyllm_paper"), prices("assyllm")
    pair = Block.of(last), Block.of(block)
    (arriving, heads), (width, key_heads) = ((voted.shapes[b.model].hidden, voted.shapes[b.model].heads) for b in pair)
    linear = LinearAdapter(torch.zeros(arriving, width), torch.zeros(width))
    assert voted.join(*pair) == linear.bytes / 4
    trained = CrossAttentionAdapter.start(linear, width, heads, key_heads, "a")
    assert voted.join(*pair, trained=True) == sum(tensor.numel() for tensor in trained.parameters())
    rank, seen = PARAMS.assembling.assyllm.adapter.rank, 4 if pair[1].model == "bert" else 3
    reread = FixedAttentionAdapter(
        torch.zeros(seen * width, width), torch.zeros(arriving, rank), torch.zeros(rank, width), torch.zeros(width)
    )
    assert probed.join(*pair) == reread.bytes / 4
    assert probed.sent(*pair) == reread.sent_bytes / 2
    natural = Block.of("bert:0-1"), Block.of("bert:1-2")
    assert probed.join(*natural) == voted.sent(*natural) == 0


def test_a_recorded_walk_is_priced_round_by_round() -> None:
    found, reported = prices("assyllm_paper"), "llama:0-1 bert:1-2"
    model = [Block.of(name) for name in reported.split()]
    rows = [
        {"round": "1", "phase": "native", "chain": " ".join(POOL[:4]), "candidates": ""},
        {"round": "2", "phase": "select", "chain": "llama:0-1", "candidates": "llama:1-2 bert:1-2"},
        {"round": "3", "phase": "tune", "chain": reported, "candidates": ""},
        {"round": "4", "phase": "head", "chain": "opt:0-1 opt:2-3", "candidates": ""},
        {"round": "4", "phase": "head", "chain": reported, "candidates": ""},
    ]
    each = [spent([row], reported, 1, found) for row in rows]
    own, join, trained = found.work(model), found.join(*model), found.join(*model, trained=True)
    tried = found.work([Block.of("bert:1-2")], join * 4 / 3)  # four real blocks of BERT for three tiny ones
    natively = found.work([Block("llama", 0, 2), Block("bert", 0, 2)])  # what the candidates give in their own models
    passes = [1, tried + natively, TRAINING * found.work(model, trained), 0]
    assert [place.walks for place in each] == pytest.approx([*passes, found.work(model, trained)])
    assert own < passes[1]
    kept = spent([{**rows[4], "passing": "0.4"}], reported, 1, found)
    assert kept.walks == pytest.approx(0.4 * each[4].walks), "who was surveyed passes nothing"
    assert kept.up == each[4].up, "and sends its sums"
    assert kept.course == pytest.approx((0, 0, 0, each[4].walks)), "but somebody passes, whom the round waits for"
    assert spent([{**rows[4], "passing": "0"}], reported, 1, found).course[-1] == 0
    probed = spent([rows[1]], reported, 0, prices("assyllm"))
    assert probed.walks < tried + natively, "a rule that probes compares with nothing"
    both = [dict(rows[1], chain=chain, candidates="bert:0-1 bert:0-1+bert:1-2 opt:2-3") for chain in POOL[:2]]
    ours = prices("assyllm")
    enter = spent(both, reported, 0, ours)
    alone = ours.work([Block.of("llama:0-1"), Block("bert", 0, 2)])  # once a round, whatever chains they are for
    joins = [ours.join(Block.of(last), Block.of("opt:2-3")) * 6 / 4 for last in POOL[:2]]
    assert enter.walks == pytest.approx(
        alone + ours.work([Block.of("llama:1-2"), *[Block.of("opt:2-3")] * 2], sum(joins))
    )
    assert enter.up == 2 * sum(
        ours.candidates(Block.of(b)) * 4 * (256 * 257 / 2 + 256 + 3) for b in ("bert:0-1", "bert:1-2", "opt:2-3")
    )
    asked = "+".join(POOL[:4]) + " bert:0-1+bert:1-2+bert:2-3"
    survey = spent([{"round": "1", "phase": "survey", "chain": "", "candidates": asked}], "", 0, ours)
    assert survey.walks == pytest.approx(ours.work([Block("llama", 0, 4), Block("bert", 0, 3)]))
    assert survey.up == HeadSums.zeros((6 + 4) * 64).bytes, "real blocks, 64 numbers of each"
    assert survey.down == 2 * (6 + 4)
    assert each[2].up == 2 * trained, "the gradients, at two bytes"
    assert each[3] == Spent(0, (0.0,) * 4, 0, 0, 0), "of the finished models only the reported one's head is asked for"
    assert each[4].up == HeadSums.zeros(2 * 768).bytes
    whole = spent(rows, reported, 1, found)
    assert whole.walks == pytest.approx(sum(place.walks for place in each))
    assert whole.course == pytest.approx(list(accumulate(place.walks for place in (*each[:3], each[4])))), "by round"
    assert whole.traffic == pytest.approx(sum(place.traffic for place in each))
    assert whole.up == max(place.up for place in each)


def test_estimate_prints_a_table_or_json(tmp_path: Path) -> None:
    from assyllm.cli import app

    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY["llama"]))
    asked = ["estimate", "--model", str(path), "--method", "qlora", "--batch", "2", "--length", "32"]
    text = CliRunner().invoke(app, asked).output
    assert "peak memory" in text
    assert "h200" in text
    answer = json.loads(CliRunner().invoke(app, [*asked, "--device", "tx2", "--json"]).output.split("\n", 0)[-1])
    assert answer["devices"][0]["device"] == "tx2"
    assert answer["peak_gb"] > answer["parameters_gb"] > 0
    assert "network" in text
    heads = CliRunner().invoke(app, [*asked[:4], "one_model_head", *asked[5:]]).output
    assert "peak memory" in heads
    assert "network" not in heads, "what a head's sums send hangs on its rounds"


def test_what_the_system_keeps_is_no_methods() -> None:
    asked = ("llama-7b", "qlora_recomputation", 1, 256, "sgd", "nano", 8, 2)
    peak = estimate(*asked)["peak_gb"]
    assert 3.5 < peak < 4, "which 4 GB hold, and 4 GB less half a GB do not"
    assert not estimate(*asked)["devices"][0]["fits"]
    assert estimate(*asked, reserve_gb=0)["devices"][0]["fits"]
    frozen = [
        estimate("llama-7b", "lora", 1, 64, "sgd", "h200", 8, 2, base_bits=bits)["parameters_gb"] for bits in (8, 16)
    ]
    assert 1.8 < frozen[1] / frozen[0] < 2


def test_unknown_names_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="gpt-9"):
        shape_of("gpt-9")
    with pytest.raises(ArtifactError, match="gpt-9"):
        config_of("gpt-9")
    with pytest.raises(ArtifactError, match="loraa"):
        step_of("loraa", TINY["llama"], SMALL)
    with pytest.raises(ArtifactError, match="no device called 'tpu'"):
        device("tpu")
    (tmp_path / "c.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ArtifactError, match="'gpt2' is not one of"):
        config_of(str(tmp_path / "c.json"))
    for key, value in (("max_position_embeddings", None), ("num_attention_heads", 0), ("num_attention_heads", 7)):
        (tmp_path / "config.json").write_text(json.dumps(TINY["opt"] | {key: value}))
        with pytest.raises(ArtifactError, match=rf"config\.json: .*{key}"):
            config_of(str(tmp_path))
    with pytest.raises(ArtifactError, match="513 tokens are more than the 512 positions of roberta-large"):
        estimate("roberta-large", "lora", 1, 513, "sgd", "tx2", 8, 2)
    with pytest.raises(ArtifactError, match="rank: 769 is more than the 768 numbers"):
        estimate("bert-base", "lora", 1, 64, "sgd", "tx2", 8, 2, rank=769)
    for said, *size, directions in (("batch: 0", 0, 64, 1), ("length: 0", 1, 0, 1), ("directions: 1001", 1, 64, 1001)):
        with pytest.raises(ArtifactError, match=f"^{said} is not from 1 to"):
            estimate("bert-base", "fwdllm", *size, "sgd", "tx2", 8, 2, directions=directions)


def test_every_method_of_the_study_has_a_step() -> None:
    runs = {m for size in ("default", "full") for ms in getattr(PARAMS.study, size).runs.values() for m in ms}
    assert runs - set(P.NO_DEVICE) <= set(METHODS)


def test_a_baseline_is_known_wherever_one_is_asked_for() -> None:
    """The recipe of ARCHITECTURE.md: what forgets one of them fails here, not in the middle of a study."""
    for method in {*P.TUNED, *P.SHARES}:
        asked = {"its class": registry.METHODS, "its step": STEPS, "its look": style.METHODS, "README": readme.METHODS}
        if method in P.TUNED:
            asked["its tuning"] = P.Baselines.model_fields
            asked["params.yaml"] = {name for name, _ in PARAMS.baselines if getattr(PARAMS.baselines, name)}
        assert not {what for what, names in asked.items() if method not in names}, method
    assert {*P.LOW_RANK, *P.FROZEN_BASE} <= set(P.TUNED)
    assert set(registry.TOGETHER) == set(P.ALL_MODELS)


def test_decoders_are_known_as_such() -> None:
    for config in CONFIGS.values():
        assert Shape.of(config).causal == (config["model_type"] not in ENCODERS)
