"""LoRA over full precision, INT8 and 4 bits: the same steps as on a device, and what each base is."""

from __future__ import annotations

import contextlib
import copy

import bitsandbytes
import pytest
import torch
from torch import Tensor

from assyllm import params as P
from assyllm.artifacts import ArtifactError
from assyllm.baselines.fedadapter import FedAdapter
from assyllm.baselines.full import FullFineTuning
from assyllm.baselines.fwdllm import FwdLLM
from assyllm.baselines.int8 import Int8Linear, dense, int8_layers, rounded
from assyllm.baselines.local import Local, Weights, train_client, train_cohort
from assyllm.baselines.lora import Lora
from assyllm.baselines.method import HEAD
from assyllm.baselines.qlora import QLora, check_kernel, decoded, four_bit
from assyllm.baselines.qlora_recomputation import QLoraRecomputation
from assyllm.zoo.forward import Packed, pooled
from tiny.training import (
    COMMON,
    FAMILIES,
    FORWARD,
    GROWING,
    LORA,
    OWNED,
    data,
    difference,
    gradients,
    model,
    shaken,
)


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
