"""Each fine-tuning method does what its paper says: gradients, bases, growth, forward estimates, closed forms."""

from __future__ import annotations

import contextlib
import copy
from functools import cache
from pathlib import Path

import bitsandbytes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_baselines import OWNED, data, tokenizer
from torch import Tensor

from assyllm import params as P
from assyllm.artifacts import ArtifactError
from assyllm.baselines import fedadapter
from assyllm.baselines.fedadapter import FedAdapter
from assyllm.baselines.full import FullFineTuning
from assyllm.baselines.fwdllm import FwdLLM, combine, slopes, unflatten
from assyllm.baselines.int8 import Int8Linear, dense, int8_layers, rounded
from assyllm.baselines.layered import Layered
from assyllm.baselines.local import Local, Weights, train_client, train_cohort
from assyllm.baselines.lora import Lora
from assyllm.baselines.method import HEAD, Method, choose
from assyllm.baselines.one_model_head import SUMS, ChoicesOnly, OneModelHead
from assyllm.baselines.qlora import QLora, check_kernel, decoded, four_bit
from assyllm.baselines.qlora_recomputation import QLoraRecomputation
from assyllm.baselines.recomputation import Recomputation
from assyllm.baselines.rounds import Plan, run_rounds
from assyllm.baselines.server import Server
from assyllm.baselines.sharing import compare
from assyllm.baselines.stream import Disk
from assyllm.baselines.swapping import Swapping
from assyllm.checkpoint import Checkpoint
from assyllm.evaluate import converged_round, smoothed
from assyllm.zoo.forward import Packed, pooled
from tiny import zoo as tiny

torch.set_num_threads(1)
COMMON = {"server_rate": 0.01, "rounds": 4, "local_epochs": 1, "batch": 4}
LORA = P.LoraTuning(**COMMON, rank=2, alpha=4, targets="all")
GROWING = P.FedAdapterTuning(**COMMON, width=4, wider=4, trial_every=2, trial_rounds=1)
FORWARD = P.FwdLLMTuning(**COMMON, rank=1, alpha=2, targets="query_value", directions=2)
FAMILIES = ["llama", "opt", "bert", "roberta"]


@cache
def model(family: str = "llama"):
    made = tiny.model(family, len(tokenizer(family)), tokenizer(family).pad_token_id)
    made.set_attn_implementation("eager")
    return made


def shaken(weights: Weights, scale: float = 0.1) -> Weights:
    """Weights at which no gradient is zero by construction."""
    draw = torch.Generator().manual_seed(0)
    return {name: t + scale * torch.randn(t.shape, generator=draw).to(t.dtype) for name, t in weights.items()}


def gradients(loss, weights: Weights, batch: Packed) -> Weights:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    value = loss(leaves, batch, torch.ones(len(batch)))
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def difference(ours: Weights, theirs: Weights) -> float:
    """Largest difference of an entry, relative to its tensor's largest."""
    return max(float((ours[n] - t).abs().max() / t.abs().max().clamp(min=1e-30)) for n, t in theirs.items())


# --------------------------------------------------------------------------------- recomputation and swapping


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_and_swapped_gradients_are_full_fine_tunings(family: str, tmp_path: Path) -> None:
    full, batch = FullFineTuning(model(family)), data(family).train.take(torch.arange(6))
    weights = shaken(full.start(), 0.02)
    exact = gradients(full.loss, weights, batch)
    assert difference(gradients(Recomputation(model(family)).checkpointed_loss, weights, batch), exact) <= 1e-6
    swapping, disk = Swapping(model(family)), Disk(tmp_path)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    value = swapping.swapped_loss(leaves, batch, torch.ones(6), disk)
    assert disk.written_bytes > 100_000
    swapped = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
    assert all(torch.equal(swapped[name], tensor) for name, tensor in exact.items())
    assert disk.read_bytes >= disk.written_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_rounds_are_full_fine_tunings(family: str) -> None:
    local, full = Local(0.01, 1, 2, "adamw", head_factor=2.0), FullFineTuning(model(family))
    expected, loss = train_client(full.step, full.start(), data(family).train, [0, 1, 2], local, "x")
    for method, allowed in ((Recomputation(model(family)), 1e-6), (Swapping(model(family)), 0.0)):
        weights, other = train_client(method.step, method.start(), data(family).train, [0, 1, 2], local, "x")
        assert other == pytest.approx(loss, rel=1e-6)
        assert difference(weights, expected) <= allowed


def test_sharing_a_trajectory_needs_equal_gradients() -> None:
    plan = Plan(1, 3, 1, Local(0.01, 1, 4, "adamw"))
    full = FullFineTuning(model())
    found = compare(Swapping(model()), full, data(), plan, 0, range(8), clients=1)
    assert (found.gradient, found.weight) == (0.0, 0.0)
    assert found.steps >= 1

    class Wrong(Swapping):
        def step(self, weights: Weights, state: list[Weights], step: int, batch: Packed, local: Local) -> float:
            loss = super().step(weights, state, step, batch, local)
            state[0]["layers.0.mlp.up_proj.weight"].mul_(1.0001)
            return loss

    with pytest.raises(ArtifactError, match="gradients differ"):
        compare(Wrong(model()), full, data(), plan, 0, range(8), clients=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_taken_apart_gives_the_same_states(family: str) -> None:
    base = FullFineTuning(model(family)).base
    parts, batch = Layered(base), data(family).train.take(torch.arange(5))
    names = [name for name, _ in base.named_parameters()]
    assert {parts.stage(name) for name in names} >= set(range(len(parts.layers) + 1))
    with torch.no_grad():
        states, call = parts.enter({}, batch)
        for index in range(len(parts.layers)):
            states = parts.layer(index, {}, states, call)
        assert torch.equal(parts.leave({}, states, batch), pooled(base, None, batch))


# ----------------------------------------------------------------------------------------------------- LoRA


def test_lora_of_full_rank_on_one_layer_is_full_fine_tuning_of_that_layer() -> None:
    """With W0 + (alpha / r) B A, A fixed to the identity and alpha = r, B's gradient and steps are W's own."""
    name = "layers.1.self_attn.q_proj"
    subject = Lora(model(), P.LoraTuning(**COMMON, rank=32, alpha=32, targets="all"))
    full, split = FullFineTuning(model()), data().train
    down, up = f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight"
    head = shaken(full.head(), 0.3)[HEAD]
    frozen = full.start()
    start = subject.start() | {down: torch.eye(32), HEAD: head}

    def lora_loss(weights: Weights, batch: Packed, items: Tensor) -> Tensor:
        return subject.loss(start | weights, batch, items)

    def full_loss(weights: Weights, batch: Packed, items: Tensor) -> Tensor:
        change = {f"{name}.weight": frozen[f"{name}.weight"] + weights[up]}
        return full.loss(frozen | change | {HEAD: head}, batch, items)

    zero = {up: torch.zeros(32, 32)}
    batch = split.take(torch.arange(8))
    assert difference(gradients(lora_loss, zero, batch), gradients(full_loss, zero, batch)) <= 1e-4
    local = Local(0.05, 3, 4, "momentum")
    clients = [(0, [0, 1, 2, 3, 4, 5]), (1, [6, 7, 8])]
    ours, _ = train_cohort(lora_loss, zero, split, clients, local, "x")
    theirs, _ = train_cohort(full_loss, zero, split, clients, local, "x")
    assert float(theirs[up].abs().max()) > 1e-4
    assert difference(ours, theirs) <= 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_starts_at_the_base_trains_adapters_only_and_vectorises(family: str) -> None:
    subject, split = Lora(model(family), LORA), data(family).train
    start, batch = subject.start(), split.take(torch.arange(5))
    assert all("lora_" in name or name == HEAD for name in start)
    assert not any("lora_" in name for name, _ in model(family).named_parameters()), "the caller's model is untouched"
    with torch.no_grad():
        plain = pooled(FullFineTuning(model(family)).base, None, batch)
        assert torch.allclose(pooled(subject.base, None, batch), plain, atol=1e-5)
    local, clients = Local(0.01, 2, 4, "momentum"), [(c, items) for c, items in enumerate(OWNED) if items]
    together, _ = train_cohort(subject.loss, shaken(start), split, clients, local, "x")
    total = sum(len(items) for _, items in clients)
    expected = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    for client, items in clients:
        weights, _ = train_client(subject.step, shaken(start), split, items, local, "x", client)
        for name, tensor in weights.items():
            expected[name] += tensor * (len(items) / total)
    assert difference(together, expected) <= 1e-4


def test_targets_of_query_value_are_pefts_own() -> None:
    subject = Lora(model(), LORA.model_copy(update={"targets": "query_value"}))
    kinds = {name.split(".")[-4] for name in subject.start() if name != HEAD}
    assert kinds == {"q_proj", "v_proj"}


# ------------------------------------------------------------------------------------------------- INT8 base


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [Lora, FedAdapter, FwdLLM])
def test_a_rounded_base_gives_the_steps_of_int8_layers(family: str, kind: type) -> None:
    settings = {Lora: LORA, FedAdapter: GROWING, FwdLLM: FORWARD}[kind]
    simulated, device = (
        kind(rounded(model(family)), settings),
        kind(int8_layers(copy.deepcopy(model(family))), settings),
    )
    for subject in (simulated, device):
        ready = subject.prepare(data(family))
    batch, weights = ready.train.take(torch.arange(6)), shaken(simulated.start(), 1.0)
    real = gradients(device.loss, weights, batch)
    assert difference(gradients(simulated.loss, weights, batch), real) <= 1e-5
    assert any(float(gradient.abs().max()) > 0 for name, gradient in real.items() if name != HEAD)


def test_int8_rows_are_a_byte_a_weight_within_half_a_level_of_the_largest() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 40)
    linear.weight.data[3] *= 100
    layer = Int8Linear(linear)
    assert layer.weight.dtype == torch.int8
    error = (dense(layer.weight, layer.scale, torch.float32) - linear.weight).abs()
    level = linear.weight.abs().amax(1, keepdim=True) / 127
    assert bool((error <= level * 0.5001).all())
    assert float(error.detach().max()) > 0
    none = Int8Linear(torch.nn.Linear(4, 4).requires_grad_(False).apply(lambda m: m.weight.zero_()))
    assert torch.equal(none(torch.ones(2, 4)), none.bias.expand(2, 4))  # rows of zeros stay zeros


# ---------------------------------------------------------------------------------------------------- QLoRA


def on_device(subject: QLora) -> QLora:
    """The method, where this processor's kernel decodes its base rightly."""
    try:
        check_kernel(subject.quantised)
    except ArtifactError as error:
        pytest.skip(str(error))
    return subject


@pytest.mark.parametrize("family", ["opt", "roberta"])  # whose rows bitsandbytes decodes rightly
@pytest.mark.parametrize("kind", [QLora, QLoraRecomputation])
def test_simulated_gradients_are_those_of_real_4_bit_layers(family: str, kind: type[QLora]) -> None:
    subject, batch = on_device(kind(model(family), LORA)), data(family).train.take(torch.arange(6))
    weights = shaken(subject.start())
    real = gradients(subject.device_loss, weights, batch)
    assert difference(gradients(subject.loss, weights, batch), real) <= 1e-5
    assert all(float(gradient.abs().max()) > 0 for gradient in real.values())


def test_the_base_went_through_4_bit() -> None:
    subject = on_device(QLora(model("opt"), LORA))
    for name, part in subject.device.named_modules():
        if name.endswith("base_layer"):
            plain = subject.base.get_submodule(name).weight.detach()
            assert part.weight.dtype == torch.uint8
            assert part.weight.numel() * 2 == plain.numel()
            blocks = plain.reshape(-1, 64)
            assert max(len(block.unique()) for block in blocks) <= 16
            original = model("opt").base_model.get_submodule(name.removesuffix(".base_layer")).weight.detach()
            assert 0.01 < float((plain - original).norm() / original.norm()) < 0.12


@pytest.mark.parametrize("shape", [(32, 32), (24, 48), (64, 64), (8, 288)])
def test_a_wrong_kernel_is_not_trusted(shape: tuple[int, int]) -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(shape[1], shape[0], bias=False))
    torch.manual_seed(0)
    weight = torch.nn.init.normal_(plain[0].weight).detach().clone()  # type: ignore[arg-type]
    quantised = four_bit(plain)
    error = float((decoded(quantised[0]) - weight).norm() / weight.norm())  # type: ignore[index]
    assert 0.01 < error < 0.12
    used = bitsandbytes.functional.dequantize_4bit(quantised[0].weight.data, quantised[0].weight.quant_state)  # type: ignore[index]
    right = float((used - weight).norm() / weight.norm()) < 0.12
    with contextlib.nullcontext() if right else pytest.raises(ArtifactError, match="decodes rows"):
        check_kernel(quantised)


def test_4_bit_layers_give_gradients_after_an_evaluation() -> None:
    """bitsandbytes repacks weights on CPUs with avx512_bf16 at the first evaluation; gradients must survive it."""
    subject, batch = on_device(QLora(model("opt"), LORA)), data("opt").train.take(torch.arange(4))
    weights = shaken(subject.start())
    before = gradients(subject.device_loss, weights, batch)
    subject.device.eval()
    with torch.no_grad():
        subject.device_loss(weights, batch, torch.ones(4))
    after = gradients(subject.device_loss, weights, batch)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    layer = four_bit(torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False)))[0]  # type: ignore[index]
    assert layer.support_avx512bf16_for_cpu is False
    row = torch.ones(1, 64)
    with torch.no_grad():
        layer.eval()(row)
    row.requires_grad_()
    layer(row).sum().backward()
    assert row.grad is not None
    assert float(row.grad.abs().max()) > 0


# ----------------------------------------------------------------------------------------------- FedAdapter


@pytest.mark.parametrize("family", FAMILIES)
def test_growing_and_caching_change_no_score(family: str) -> None:
    subject = FedAdapter(model(family), GROWING)
    prepared = subject.prepare(data(family))
    small = shaken(subject.start())
    grown = subject._grown(small, 2, 12)
    assert len(grown) == 1 + 3 * 2
    batch = prepared.train.take(torch.tensor([3, 0, 7, 21]))
    with torch.no_grad():
        assert torch.allclose(subject.scores(small, batch), subject.scores(grown, batch), atol=1e-5)
        base = FullFineTuning(model(family)).base
        begun = subject.start() | {HEAD: small[HEAD]}
        assert torch.allclose(subject.scores(begun, batch), pooled(base, None, batch) @ small[HEAD], atol=1e-5)
    assert sorted(subject.cache) == [len(subject.layered.layers) - 2, len(subject.layered.layers) - 1]


def test_adapters_grow_by_trials_up_to_the_depth_that_the_cost_table_counts() -> None:
    subject = FedAdapter(model(), GROWING)
    seen = []
    plan = Plan(12, 5, 2, Local(0.02, 1, 8, "adamw"))
    _, outcome = run_rounds(subject, data(), plan, 0, range(8), report=lambda row: seen.append(row["bytes_up"]))
    assert len(set(seen)) > 2, "adapters grew"
    assert subject.deepest == 3
    assert outcome.rounds[-1]["loss"] < outcome.rounds[0]["loss"]
    weights = subject._grown(subject.start(), 3, subject.width)
    assert subject.after_round(weights, 2) is weights, "nothing is left to try"


def test_adapters_below_the_first_layer_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"baselines\.fedadapter: depth 9 is more than the \d layers"):
        FedAdapter(model(), GROWING.model_copy(update={"depth": 9})).start()


def test_adapters_grow_to_the_rows_that_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedadapter, "WIDEST", 6)
    subject = FedAdapter(model(), GROWING.model_copy(update={"wider": 2000}))
    subject.prepare(data())
    groups = subject._groups(subject.after_round(subject.start(), 2))
    assert {name: next(t.shape[0] for key, t in g.items() if key.endswith("down")) for name, g in groups.items()} == {
        "shallow": 4, "deep": 4, "wide": 6,
    }  # fmt: skip


def test_a_trial_keeps_the_group_of_least_loss() -> None:
    subject = FedAdapter(model(), GROWING)
    subject.prepare(data())
    trial = subject.after_round(subject.start(), 2)
    groups = subject._groups(trial)
    assert list(groups) == ["shallow", "deep", "wide"]
    groups["wide"] = shaken(groups["wide"], 0.3)
    mixed = {f"{name}/{key}": t for name, group in groups.items() for key, t in group.items()}
    losses = {name: subject._dev_loss(group) for name, group in groups.items()}
    kept = subject.after_round(mixed, 3)
    best = groups[min(losses, key=lambda name: losses[name])]
    assert all(torch.equal(kept[name], tensor) for name, tensor in best.items())


# --------------------------------------------------------------------------------------------------- FwdLLM


def test_forward_gradients_point_along_the_true_one_as_directions_grow() -> None:
    subject, batch = FwdLLM(model(), FORWARD), data().train.take(torch.arange(8))
    weights = shaken(subject.start())
    exact = torch.cat([g.flatten() for _, g in sorted(gradients(subject.loss, weights, batch).items())])
    cosines = []
    for number in (16, 256, 4096):
        flat = torch.from_numpy(np.random.default_rng(0).standard_normal((number, len(exact)), dtype=np.float32))
        found = []
        for part in flat.split(128):
            inputs = {name: tensor[None] for name, tensor in batch.tensors().items()}
            with torch.no_grad():
                slope, _ = slopes(subject.loss, weights, unflatten(part[None], weights), Packed(**inputs),
                                  torch.ones(1, 8), "central", 0.01)  # fmt: skip
            found.append(slope[0])
        estimate = torch.cat(found) @ flat
        cosines.append(float(estimate @ exact / estimate.norm() / exact.norm()))
    assert cosines[0] < cosines[1] < cosines[2]
    assert cosines[2] > 0.9


def test_forward_mode_gives_the_slope_that_differences_approach() -> None:
    subject, batch = FwdLLM(model(), FORWARD), data().train.take(torch.arange(6))
    weights = shaken(subject.start())
    exact = gradients(subject.loss, weights, batch)
    direction = shaken({name: torch.zeros_like(t) for name, t in weights.items()}, 1.0)
    true = float(sum((exact[name] * direction[name]).sum() for name in exact))
    inputs = Packed(**{name: tensor[None] for name, tensor in batch.tensors().items()})
    once = {name: tensor[None, None] for name, tensor in direction.items()}
    for estimator, allowed in (("jvp", 1e-4), ("central", 2e-2)):
        slope, value = slopes(subject.loss, weights, once, inputs, torch.ones(1, 6), estimator, 0.005)
        assert float(slope[0, 0]) == pytest.approx(true, rel=allowed)
        assert float(value[0, 0]) == pytest.approx(float(subject.loss(weights, batch, torch.ones(6))), rel=1e-2)


@given(st.integers(2, 6), st.integers(1, 4), st.integers(3, 30))
@settings(max_examples=30, deadline=None)
def test_relative_variance_is_a_share_and_falls_with_agreement(clients: int, directions: int, size: int) -> None:
    draw = torch.Generator().manual_seed(clients * 100 + directions * 10 + size)
    estimates = torch.randn(clients, directions, size, generator=draw)
    shares = torch.full((clients,), 1 / clients)
    mean, variance = combine(estimates, shares)
    assert torch.allclose(mean, estimates.mean((0, 1)), atol=1e-5)
    assert 0 <= variance <= 1
    assert combine(torch.ones(clients, directions, size), shares)[1] == pytest.approx(0, abs=1e-6)


def test_the_heads_gradient_is_exact_over_the_cohort() -> None:
    subject, clients = FwdLLM(model(), FORWARD), [(0, [0, 1, 2]), (1, [5]), (2, [6, 7])]
    weights = shaken(subject.start())
    exact = gradients(subject.loss, weights, data().train.take(torch.tensor([0, 1, 2, 5, 6, 7])))
    moved, _ = subject.train(weights, data().train, clients, Local(1.0, 1, 4), 0, 1)
    assert torch.allclose(weights[HEAD] - moved[HEAD], exact[HEAD], atol=1e-6)


def test_a_device_steps_along_its_own_estimate() -> None:
    subject, batch = FwdLLM(model(), FORWARD), data().train.take(torch.arange(4))
    weights = shaken(subject.start())
    exact, before = gradients(subject.loss, weights, batch), {n: t.clone() for n, t in weights.items()}
    loss = subject.step(weights, [], 1, batch, Local(0.1, 1, 2))
    assert loss == pytest.approx(float(subject.loss(before, batch, torch.ones(4))), rel=0.02)
    change = {name: before[name] - tensor for name, tensor in weights.items()}
    assert torch.allclose(change[HEAD], 0.1 * exact[HEAD], atol=1e-6)
    along = sum(float((exact[name] * change[name]).sum()) for name in exact if name != HEAD)
    assert along > 0, "downhill: a slope times its direction never points up the measured loss"


def test_more_directions_are_asked_for_until_the_variance_is_low(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = FwdLLM._ask

    def ask(self, *arguments):
        asked.append(arguments[5])
        return original(self, *arguments)

    monkeypatch.setattr(FwdLLM, "_ask", ask)
    clients = [(c, items) for c, items in enumerate(OWNED) if items]
    for variance, expected in ((1.0, [0]), (0.0, [0, 1, 2])):
        subject = FwdLLM(model(), FORWARD.model_copy(update={"variance": variance, "max_directions": 6}))
        asked.clear()
        weights = shaken(subject.start())
        size = sum(4 * tensor.numel() for tensor in weights.values())
        subject.train(weights, data().train, clients, Local(1.0, 1, 4), 0, 1)
        assert asked == expected
        estimate = size - 4 * weights[HEAD].numel()
        assert subject.traffic(weights) == (size + (len(expected) - 1) * estimate, size), "an estimate up for each"
        subject.train(weights, data().train, clients, Local(1.0, 1, 4), 0, 2)
        assert subject.traffic(weights)[1] == size + estimate, "the last one down, by which directions are chosen"


def test_directions_are_chosen_by_cosine_with_the_last_estimate() -> None:
    subject = FwdLLM(model(), FORWARD.model_copy(update={"candidates": 50}))
    subject.start()
    assert subject._draw(40, "a").shape == (2, 40)
    subject.last = torch.nn.functional.one_hot(torch.tensor(3), 40).float()
    drawn = subject._draw(40, "a")
    cosine = drawn[:, 3].abs() / drawn.norm(dim=-1)
    assert float(cosine.min()) > 0.25  # of a hundred candidates; a single draw's is .13 on average


# ------------------------------------------------------------------------------------------- closed-form head


def test_fewer_clients_than_a_sum_is_formed_of_are_refused() -> None:
    plan = Plan(3, 3, 1, Local(0.0, 1, 1), least=3)
    subject = OneModelHead(model(), P.ClosedForm(ridge_grid=[1.0], rounds=3))
    with pytest.raises(ArtifactError, match=r"^2 client\(s\) can take part, fewer than federated\.least_clients \(3\)"):
        run_rounds(subject, data(), plan, 0, [client for client, items in enumerate(OWNED) if items][:2])


def test_the_head_is_that_of_all_data_at_once() -> None:
    from assyllm.assembly.head import HeadSums, fit_on_dev

    settings_ = P.ClosedForm(ridge_grid=[0.01, 1.0], rounds=3)
    subject, plan = OneModelHead(model(), settings_), Plan(3, 3, 1, Local(0.0, 1, 1))
    _, outcome = run_rounds(subject, data(), plan, 0, range(8))
    assert [row["participants"] for row in outcome.rounds] == [3, 3, 1], "every client with data, once"
    prepared = subject.prepare(data())
    last = subject.start()
    for client, items in enumerate(OWNED):
        if items:
            last, _ = subject.train(last, prepared.train, [(client, items)], plan.local, 0)
    sums = HeadSums(*(last[name] for name in SUMS))
    held = prepared.train.take(torch.tensor([item for items in OWNED for item in items]))
    pooled_at_once = HeadSums.of(held.cached, held.choice_mask, held.answer)  # type: ignore[attr-defined]
    assert torch.allclose(sums.xx, pooled_at_once.xx)
    _, _, accuracy = fit_on_dev(pooled_at_once, [0.01, 1.0], prepared.dev.cached, prepared.dev.choice_mask,
                                   prepared.dev.answer)  # type: ignore[attr-defined]  # fmt: skip
    assert outcome.rounds[-1]["dev"] == pytest.approx(accuracy)
    assert outcome.rounds[0]["bytes_up"] == sums.bytes


def test_the_head_reads_all_layers_as_an_assembled_models_reads_all_blocks() -> None:
    subject = OneModelHead(model(), P.ClosedForm(ridge_grid=[1.0], rounds=1))
    last = OneModelHead(model(), P.ClosedForm(ridge_grid=[1.0], rounds=1, scope="last_layer"))
    layers, width = 4, 32
    assert (subject.size, last.size) == (layers * 2 * width, 2 * width)
    found, least = subject.prepare(data()).train.cached, last.prepare(data()).train.cached  # type: ignore[attr-defined]
    assert torch.equal(found[..., -2 * width :], least)
    assert not torch.equal(found[..., : 2 * width], least)
    narrow = OneModelHead(model(), P.ClosedForm(ridge_grid=[1.0], rounds=1, sketch_dims=5))
    assert narrow.prepare(data()).train.cached.shape[-1] == narrow.size == layers * 5  # type: ignore[attr-defined]


def test_choices_only_sees_no_question() -> None:
    question = tiny.questions("boolq", "train", 1)[0]
    subject = ChoicesOnly(model(), P.ClosedForm(ridge_grid=[1.0], rounds=1))
    assert subject.view(question).stem == ""
    assert subject.view(question).choices == question.choices


# ---------------------------------------------------------------------------------------- server, convergence


def test_the_default_server_takes_the_average() -> None:
    average = {"a": torch.ones(3)}
    assert Server().step({"a": torch.zeros(3)}, average) is average


@pytest.mark.parametrize("name", ["fedavgm", "fedadam"])
def test_server_optimizers_move_towards_the_average_and_keep_moments(name: str) -> None:
    server, weights = Server(name, 0.1), {"a": torch.zeros(3), "b": torch.zeros(2)}
    target = torch.tensor([1.0, -2.0, 3.0])
    for _ in range(200):
        weights = server.step(weights, {"a": weights["a"] + 0.3 * (target - weights["a"]), "b": weights["b"]})
    assert torch.allclose(weights["a"], target, atol=0.3)
    assert "first/a" in server.moments
    grown = server.step(weights, {"a": torch.ones(4)})
    assert torch.equal(grown["a"], torch.ones(4)), "a tensor of another shape is taken as it is"


def test_a_tensor_that_was_gone_starts_with_fresh_moments() -> None:
    """As a trial group's of FedAdapter: it comes back rounds later, from other weights."""
    server, down = Server("fedadam", 0.1), {"trial/a": torch.full((2,), -1.0)}
    for _ in range(20):
        server.step({"trial/a": torch.zeros(2)}, down)
    server.step({"a": torch.zeros(2)}, {"a": torch.ones(2)})
    again = server.step({"trial/a": torch.zeros(2)}, {"trial/a": torch.full((2,), 1e-3)})
    assert torch.allclose(again["trial/a"], torch.full((2,), 0.1), rtol=0.01)


def test_fedadams_first_step_is_its_rate_in_every_weight() -> None:
    moved = Server("fedadam", 0.1).step({"a": torch.zeros(2)}, {"a": torch.tensor([1e-2, -5.0])})["a"]
    assert torch.allclose(moved.abs(), torch.full((2,), 0.1), rtol=0.01)  # (1 - .9) / sqrt(1 - .99) = 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_convergence_is_a_round_of_the_curve_and_ignores_what_follows_a_plateau(values: list[float]) -> None:
    curve = [(5 * (i + 1), value) for i, value in enumerate(values)]
    found = converged_round(curve)
    assert found in {round_ for round_, _ in curve}
    assert converged_round([(r, 0.0) for r in range(1, 4)]) == 1


def test_one_lucky_round_is_not_convergence() -> None:
    values = [0.3, 0.5, 0.9, 0.5, 0.6, 0.7, 0.75, 0.8, 0.8, 0.8, 0.8]
    assert converged_round([(5 * i, v) for i, v in enumerate(values, 1)]) == 45


def test_a_rates_worth_is_its_smoothed_curve_s_best() -> None:
    assert smoothed([0.3, 0.9, 0.3]).tolist() == pytest.approx([0.6, 0.5, 0.6])
    assert smoothed([0.7]).tolist() == [0.7]


@pytest.mark.parametrize(("kind", "tuning"), [(Lora, LORA), (FedAdapter, GROWING)])
def test_first_adapters_are_drawn_by_the_seed(kind: type, tuning: P.Tuning) -> None:
    first, again, other = (kind(model(), tuning).start(seed) for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_a_rate_may_differ_by_model_and_is_what_the_grid_searches() -> None:
    by_model = P.Tuning(**COMMON | {"server_rate": {"llama": 0.1, "opt": 0.2}})
    assert [by_model.rates_of(name) for name in ("llama", "opt")] == [(0.1, 1.0), (0.2, 1.0)]
    assert by_model.at(0.3, 1).rates_of("opt") == (0.3, 1.0)
    clients = P.Tuning(**COMMON | {"server_rate": 1.0}, learning_rate={"llama": 0.1, "opt": 0.2})
    assert [clients.rates_of(name) for name in ("llama", "opt")] == [(1.0, 0.1), (1.0, 0.2)]
    averaged = P.Tuning(**COMMON | {"server_rate": 1.0}, server="fedavg", learning_rate=0.01, optimizer="adamw")
    found = averaged.at(0.3, 2)
    assert (found.learning_rate, found.server_rate, found.local_epochs) == (0.3, 1.0, 2)
    assert found.rounds == averaged.rounds


# --------------------------------------------------------------------------------------------------- resuming

MADE: dict[str, tuple] = {
    "lora": (Lora, LORA), "qlora": (QLora, LORA), "fedadapter": (FedAdapter, GROWING), "fwdllm": (FwdLLM, FORWARD),
    "one_model_head": (OneModelHead, P.ClosedForm(ridge_grid=[1.0], rounds=4)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MADE))
def test_a_killed_run_of_any_method_resumes_to_identical_results(name: str, tmp_path: Path) -> None:
    def made() -> Method:
        return MADE[name][0](model(), MADE[name][1])

    server = "fedadam" if name == "fwdllm" else "fedavg"
    plan = Plan(6, 3, 1, Local(0.02, 1, 4, "adamw"), 0.0, server, 0.02 if server == "fedadam" else 1.0)
    best, outcome = run_rounds(made(), data(), plan, 0, range(8))

    def kill(row: dict) -> None:
        if row["round"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rounds(made(), data(), plan, 0, range(8), Checkpoint(tmp_path, "t", "key"), kill)
    resumed, again = run_rounds(made(), data(), plan, 0, range(8), Checkpoint(tmp_path, "t", "key"))
    assert again.rounds == outcome.rounds
    assert all(torch.equal(resumed[key], tensor) for key, tensor in best.items())
    subject = made()
    assert choose(subject, best, subject.prepare(data()).test).tolist() == outcome.test_chosen
