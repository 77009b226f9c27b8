"""Packed rows made float by one kernel on a CUDA device, where plain torch makes a dozen passes; the same bits.

Inside ``with fused():`` every packed layer on a CUDA device uses it. Nothing here is used on the CPU, and the module
needs triton at import, which torch brings where it has CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import triton
import triton.language as tl
from torch import Tensor

from assyllm.quantizer.planes import PLANES, Layout

COLUMNS = 1024  # of a row that one program makes


@triton.jit
def _bits(plane, row, column, inside, BITS: tl.constexpr, ALL: tl.constexpr):  # type: ignore[no-untyped-def]
    """The ``BITS`` bits that a plane holds of some columns of a row; byte j has columns j, j + size, j + 2 size, ..."""
    size: tl.constexpr = (ALL * BITS + 7) // 8
    byte = tl.load(plane + row * size + column % size, mask=inside, other=0).to(tl.int32)
    return (byte >> (column // size * BITS)) & ((1 << BITS) - 1)


@triton.jit
def _rows(  # type: ignore[no-untyped-def]
    out, scales, plane8, plane4, plane2, plane1,
    WIDTH: tl.constexpr, ALL: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``BLOCK`` of a row's ``ALL`` columns; what divides is known when the kernel is compiled."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < ALL
    value = tl.zeros([BLOCK], tl.int32)
    if WIDTH & 8:
        value = _bits(plane8, row, column, inside, 8, ALL)
    if WIDTH & 4:
        value = (value << 4) | _bits(plane4, row, column, inside, 4, ALL)
    if WIDTH & 2:
        value = (value << 2) | _bits(plane2, row, column, inside, 2, ALL)
    if WIDTH & 1:
        value = (value << 1) | _bits(plane1, row, column, inside, 1, ALL)
    signed = (value - (1 << (WIDTH - 1))).to(tl.float32)
    groups: tl.constexpr = (ALL + GROUP - 1) // GROUP
    scale = tl.load(scales + row * groups + column // GROUP, mask=inside, other=0.0)
    scale = scale.to(out.dtype.element_ty).to(tl.float32)  # as plain torch rounds it
    tl.store(out + row * ALL + column, (signed * scale).to(out.dtype.element_ty), mask=inside)


def rows_of_width(
    planes: Mapping[int, Tensor], scales: Tensor, width: int, columns: int, group_size: int, dtype: torch.dtype
) -> Tensor:
    """Rows of one width ``[n, columns]`` as ``dtype``.

    Args:
        planes: by bits, ``[n, B]`` uint8, those that the width has.
        scales: ``[n, groups]`` fp16.
    """
    out = torch.empty(len(scales), columns, dtype=dtype, device=scales.device)
    given = [planes.get(bits, scales) for bits in (8, 4, 2, 1)]  # nothing is read of what a width lacks
    _rows[len(scales), triton.cdiv(columns, COLUMNS)](
        out, scales, *given, WIDTH=width, ALL=columns, GROUP=group_size, BLOCK=COLUMNS
    )
    return out


@contextmanager
def fused() -> Iterator[None]:
    """Packed layers on a CUDA device use the kernel for as long as the ``with`` lasts; others are untouched."""
    plain = Layout._segment

    def segment(
        self: Layout, packed: Mapping[str, Tensor], width: int, low: int, high: int, dtype: torch.dtype
    ) -> Tensor:
        if width in (0, 16) or not packed["widths"].is_cuda:
            return plain(self, packed, width, low, high, dtype)
        starts = {bits: self._before(bits, width) for bits in PLANES if width & bits}
        planes = {bits: packed[f"plane{bits}"][at + low : at + high] for bits, at in starts.items()}
        at = sum(n for other, n in self.counts.items() if 0 < other < width)
        scales = packed["scales"][at + low : at + high]
        return rows_of_width(planes, scales, width, self.columns, self.group_size, dtype)

    Layout._segment = segment  # type: ignore[method-assign]
    try:
        yield
    finally:
        Layout._segment = plain  # type: ignore[method-assign]
