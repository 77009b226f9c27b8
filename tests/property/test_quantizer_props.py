"""Packing is exact, rounding errs by at most half a step, allocations keep their budget and are nested."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from assyllm.quantizer import allocate
from assyllm.quantizer.planes import Layout, levels, nearest, pack, restore
from assyllm.quantizer.sizes import WIDTHS, matrix_bytes

SEEDS = st.integers(0, 9999)
ROWS = st.integers(1, 9)


def drawn(seed: int, rows: int, columns: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(rows, columns, generator=generator)
    return weight, torch.tensor(WIDTHS, dtype=torch.uint8)[torch.randint(len(WIDTHS), (rows,), generator=generator)]


@settings(max_examples=80, deadline=None)
@given(SEEDS, ROWS, st.integers(1, 70), st.sampled_from([1, 8, 32]))
def test_planes_give_back_every_integer_and_their_bytes_are_the_arithmetic_ones(seed, rows, columns, group) -> None:
    weight, widths = drawn(seed, rows, columns)
    whole, scales = nearest(weight, widths, group)
    packed = pack(whole, scales, weight, widths)
    found, number = widths.unique(return_counts=True)
    counts = dict(zip(found.tolist(), number.tolist(), strict=True))
    layout = Layout(counts, columns, group)
    assert {name: (tuple(t.shape), t.dtype) for name, t in packed.items()} == layout.shapes()
    assert sum(t.nbytes for t in packed.values()) == matrix_bytes(counts, columns, group)
    back = layout.rows_of(packed, 0, rows, torch.float32)
    order = torch.argsort(widths.int(), stable=True)
    expected = restore(whole, scales, weight, widths, group)
    assert torch.equal(back, expected[order])
    cut = rows // 2
    parts = [layout.rows_of(packed, a, b, torch.float32) for a, b in ((0, cut), (cut, rows)) if a < b]
    assert torch.equal(torch.cat(parts), back)


@settings(max_examples=60, deadline=None)
@given(SEEDS, ROWS, st.integers(1, 70), st.sampled_from([1, 8, 32]), st.floats(1e-3, 1e3))
def test_error_is_at_most_half_a_step(seed, rows, columns, group, scale) -> None:
    weight, widths = drawn(seed, rows, columns, scale)
    whole, scales = nearest(weight, widths, group)
    back = restore(whole, scales, weight, widths, group)
    step = scales.float().repeat_interleave(group, dim=1)[:, :columns]
    # fp16 rounds the scale by up to 2^-11, so the largest weight may lie L * 2^-11 steps beyond the range
    # (and a scale below fp16's normal range by up to 2^-25)
    top = levels(widths)[:, None]
    slack = 0.5 + top * 2**-10
    rounded = ((widths > 0) & (widths < 16))[:, None]
    assert bool((((weight - back).abs() <= step * slack + top * 2**-24) | ~rounded).all())


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 4), st.lists(st.sampled_from(WIDTHS), min_size=1, unique=True), st.booleans())
@example(seed=323, number=1, widths=[3, 4], whole=False)
def test_a_larger_budget_keeps_every_bit_of_a_smaller_one(seed, number, widths, whole) -> None:
    widths = sorted(widths)
    generator = torch.Generator().manual_seed(seed)
    matrices, low, high = {}, 0, 0
    for i in range(number):
        rows, columns = (int(torch.randint(1, 40, (1,), generator=generator)) for _ in range(2))
        weight = torch.randn(rows, columns, generator=generator)
        importance = torch.rand(rows, generator=generator) ** 4
        matrices[f"m{i}"] = allocate.Matrix(importance, allocate.rounding_errors(weight, widths, 16), columns)
        low += matrix_bytes({widths[0]: rows}, columns, 16)
        high += matrix_bytes({widths[-1]: rows}, columns, 16)
    before, error = None, float("inf")
    for share in (0.0, 0.2, 0.5, 0.8, 1.0, 1.1):
        # rows of a few columns take whole bytes a plane, so that three bits may take more than four
        budget = low + int(share * max(0, high - low))
        found = allocate.knapsack(matrices, widths, 16, budget, whole)
        spent, scored = 0, 0.0
        for name, matrix in matrices.items():
            place = torch.searchsorted(torch.tensor(widths), found[name].long())
            error_of = matrix.errors.gather(0, place[None])[0].double()
            floor = allocate.FLOOR * float(matrix.importance.double().mean())
            scored += float((matrix.importance.double().clamp(min=floor) * error_of).sum())
            spent += sum(matrix_bytes({int(w): 1}, matrix.columns, 16) for w in found[name])
            if before is not None:
                assert bool((found[name] >= before[name]).all())
        assert spent <= budget
        assert scored <= error * (1 + 1e-9)
        before, error = found, scored
