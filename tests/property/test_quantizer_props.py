"""Packing is exact, rounding errs by at most half a step, quantizing twice changes nothing."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assyllm.quantizer.uniform import LEVELS, dequantize, pack_int4, quantize, unpack_int4

SIZES = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), SIZES, st.integers(1, 40))
def test_int4_packing_is_lossless(seed, rows, columns) -> None:
    whole = torch.randint(-8, 8, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    packed = pack_int4(whole)
    assert packed.numel() == rows * ((columns + 1) // 2)
    assert torch.equal(unpack_int4(packed, columns), whole)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 9999), SIZES, st.integers(1, 70), st.sampled_from([1, 8, 32]), st.sampled_from([4, 8]),
    st.floats(1e-3, 1e3),
)  # fmt: skip
def test_error_is_at_most_half_a_step(seed, rows, columns, group, bits, scale) -> None:
    weight = scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    qweight, scales = quantize(weight, bits, group)
    back = dequantize(qweight, scales, columns, group)
    step = scales.float().repeat_interleave(group, dim=1)[:, :columns]
    # fp16 rounds the scale by up to 2^-11, so the largest weight may lie LEVELS * 2^-11 steps beyond the range
    assert bool(((weight - back).abs() <= step * (0.5 + LEVELS[bits] * 2**-10) + 1e-6).all())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.sampled_from([4, 8]))
def test_quantizing_again_changes_nothing(seed, bits) -> None:
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(seed))
    first = dequantize(*quantize(weight, bits, 8), 24, 8)
    second = dequantize(*quantize(first, bits, 8), 24, 8)
    assert torch.allclose(first, second, rtol=2e-3)
