"""The linear adapter from sums is the ridge fit on the pooled rows."""

from __future__ import annotations

import math

import pytest
import torch

from assyllm.adapter import fixed_attention
from assyllm.adapter.linear import LinearAdapter, LinearSums
from assyllm.adapter.registry import build, describe
from assyllm.artifacts import ArtifactError


def data(n: int = 200, d: int = 12, e: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator) + 3
    return x, x @ torch.randn(d, e, generator=generator) + 5


def test_an_affine_map_is_found_again() -> None:
    x, y = data()
    adapter = LinearSums.of(x, y).fit(1e-9)
    torch.testing.assert_close(adapter(x), y, atol=1e-3, rtol=1e-3)
    assert LinearSums.of(x, y).unexplained(adapter) < 1e-6


def test_sums_over_clients_are_the_pooled_fit() -> None:
    x, y = data()
    parts = [LinearSums.of(x[i : i + 23], y[i : i + 23]) for i in range(0, 200, 23)]
    total = LinearSums.zeros(12, 7)
    for part in parts:
        total = total + part
    one, other = LinearSums.of(x, y).fit(0.1), total.fit(0.1)
    torch.testing.assert_close(one.weight, other.weight)
    torch.testing.assert_close(one.bias, other.bias)


def test_ridge_is_relative_to_the_scale_of_the_states() -> None:
    x, y = data()
    one, other = LinearSums.of(x, y).fit(0.1), LinearSums.of(100 * x, y).fit(0.1)
    torch.testing.assert_close(one(x), other(100 * x), atol=1e-3, rtol=1e-3)


def test_sums_of_other_widths_and_odd_ridges_are_refused() -> None:
    one, other = (LinearSums.of(torch.randn(5, a), torch.randn(5, b)) for a, b in ((1, 1), (20, 12)))
    with pytest.raises(ArtifactError, match=r"sums of widths \[1, 1\] and \[20, 12\] do not add up"):
        one + other
    with pytest.raises(ArtifactError, match="ridge: -1"):
        one.fit(-1.0)


def test_a_correction_of_low_rank_keeps_the_mean() -> None:
    """With fewer directions than the residuals vary in, what is left is no more than of their mean alone."""
    torch.manual_seed(0)
    x = torch.randn(2000, 12)
    y = x @ torch.randn(12, 8) + 5 + torch.randn(8)
    block = fixed_attention.Rereading(torch.zeros(3, 8), torch.zeros(8))
    alone = float((y - y.mean(0)).square().sum(-1).mean())
    left = []
    for rank in (1, 2, 4, 8):
        found = fixed_attention.fit(block, LinearSums.of(x, y), 1e-6, rank)
        left.append(float((x @ found.down @ found.up + found.bias - y).square().sum(-1).mean()))
    assert alone > left[0] > left[1] > left[2] > left[3]
    assert left[3] == pytest.approx(0, abs=1e-3)


def test_no_rows_or_broken_rows_are_refused() -> None:
    with pytest.raises(ArtifactError, match="no rows"):
        LinearSums.zeros(3, 2).fit(0.1)
    with pytest.raises(ArtifactError, match="finite"):
        LinearSums.of(torch.full((4, 3), float("inf")), torch.ones(4, 2)).fit(0.1)
    for x, y in ((torch.ones(4, 3), torch.ones(5, 2)), (torch.ones(4), torch.ones(4))):
        with pytest.raises(ArtifactError, match=r"\[n, d\] and \[n, e\] are expected"):
            LinearSums.of(x, y)
    with pytest.raises(ArtifactError, match="no adapter at ridge 0: fewer independent rows than columns"):
        LinearSums.of(torch.ones(20, 3), torch.randn(20, 2)).fit(0)


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_the_unexplained_share_hangs_on_no_unit(size) -> None:
    x, y = data()
    plain, other = LinearSums.of(x, y), LinearSums.of(x, size * y.double())
    assert other.unexplained(other.fit(0.1)) == pytest.approx(plain.unexplained(plain.fit(0.1)), rel=1e-5)
    still = LinearSums.of(x, torch.full((len(x), 3), size))
    assert still.unexplained(still.fit(0.1)) in (0.0, math.inf)
    assert still.unexplained(LinearAdapter(torch.zeros(12, 3), torch.zeros(3))) == math.inf


def test_an_adapter_takes_states_of_any_precision() -> None:
    x, y = data()
    adapter = LinearSums.of(x, y).fit(0.1)
    for dtype in (torch.float64, torch.bfloat16):
        assert adapter(x.to(dtype)).dtype == dtype
        torch.testing.assert_close(adapter(x.to(dtype)).float(), adapter(x), atol=0.1, rtol=0.1)


def test_an_adapter_reads_back_by_its_kind() -> None:
    adapter = LinearSums.of(*data()).fit(0.1)
    described = describe(adapter)
    assert described == {"kind": "linear", "from": 12, "to": 7}
    again = build(described, adapter.state_dict())
    assert isinstance(again, LinearAdapter)
    x, _ = data()
    assert torch.equal(again(x), adapter(x))
    assert again.bytes == adapter.bytes == 4 * (12 * 7 + 7)


def test_a_described_adapter_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(ArtifactError, match="adapter 'linear': a mapping with a kind"):
        build("linear", {})
    tensors = LinearSums.of(*data()).fit(0.1).state_dict()
    with pytest.raises(ArtifactError, match="adapter kind 'spline': not one of linear"):
        build({"kind": "spline"}, tensors)
    with pytest.raises(ArtifactError, match=r"linear adapter: its tensors do not fit .*bias"):
        build({"kind": "linear", "from": 12, "to": 7}, {"weight": tensors["weight"]})
    query = {name: torch.zeros(7, 4) for name in ("query", "key", "value")} | {"out": torch.zeros(4, 7)} | tensors
    for heads in (0, None):
        with pytest.raises(ArtifactError, match="cross_attention adapter: its tensors do not fit"):
            build({"kind": "cross_attention", "heads": heads, "key_heads": 2}, query)
    with pytest.raises(ArtifactError, match="linear adapter: described as"):
        build({"kind": "linear", "from": 12, "to": 8}, tensors)
