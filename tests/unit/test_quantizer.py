"""Packed layers compute what their integers say; bytes quoted are bytes on disk."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assyllm.artifacts import ArtifactError
from assyllm.blocks.pool import Pool
from assyllm.quantizer.packed import PackedLinear
from assyllm.quantizer.pool import open_pool, quantize_pool
from assyllm.quantizer.uniform import quantize


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_gradient_are_those_of_the_dequantized_weight(bits, bias) -> None:
    layer = PackedLinear.from_linear(nn.Linear(37, 11, bias=bias), bits, 16)
    x = torch.randn(3, 5, 37, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    expected = nn.functional.linear(y, layer.weight(), None if layer.bias is None else layer.bias.float())
    got = layer(x)
    torch.testing.assert_close(got, expected)
    (got**2).sum().backward()
    (expected**2).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    layer.eval()
    with torch.no_grad():
        layer(x)
    assert torch.autograd.grad(layer(x).sum(), x)[0] is not None  # an eval forward leaves gradients alive


@pytest.mark.parametrize(("bits", "name"), [(16, "fp16"), (8, "int8"), (4, "int4")])
def test_quantized_pool_counts_every_byte_and_runs(bits, name, tiny_folder, tiny_pool, tmp_path) -> None:
    quantize_pool(tiny_folder / "pool", tmp_path / name, bits, 32)
    pool = open_pool(tmp_path / name)
    for block in pool.ids:
        stored = pool.tensors(block)
        assert pool.info(block).bytes == sum(t.nbytes for t in stored.values())
        assert pool.info(block).parameters == tiny_pool.info(block).parameters
        assert {t.dtype for t in stored.values()} <= {torch.float16, torch.int8, torch.uint8}
    assert pool.bytes < {16: 0.51, 8: 0.34, 4: 0.24}[bits] * tiny_pool.bytes
    ids = torch.randint(5, 90, (4, 6))
    mask = torch.ones(4, 6, dtype=torch.bool)
    exact, low = ids, ids
    for info in pool.of_model("llama"):
        exact, low = tiny_pool.block(info.id)(exact, mask), pool.block(info.id)(low, mask)
    assert float((exact - low).norm() / exact.norm()) < {16: 0.01, 8: 0.05, 4: 0.6}[bits]


def test_a_quantized_pool_opened_as_a_plain_one_says_so(tiny_folder) -> None:
    with pytest.raises(ArtifactError, match="open_pool"):
        Pool.open(tiny_folder / "pool8").block("llama:0-1")


def test_bad_weights_are_refused() -> None:
    with pytest.raises(ArtifactError, match="finite"):
        quantize(torch.tensor([[1.0, float("nan")]]), 8, 2)
    with pytest.raises(ArtifactError, match="3"):
        quantize(torch.ones(2, 2), 3, 2)
