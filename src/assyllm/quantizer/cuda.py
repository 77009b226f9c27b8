"""Packed rows made float by one kernel on a CUDA device, where plain torch makes a dozen passes; the same bits.

A kernel makes a tile of rows of all widths at once and in the matrix's own order, so that a tile's product goes
straight to its columns of the output. Packed layers use it on a CUDA device (:func:`assyllm.quantizer.packed.kernel`);
nothing here is used on the CPU, and the module needs triton at import, which torch brings where it has CUDA.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from assyllm.quantizer.packed import Packed
from assyllm.quantizer.planes import PLANES

COLUMNS = 1024  # of a row that one program makes
FIELDS = ("scales", *(f"plane{plane}" for plane in PLANES))  # in the order of Layout.offsets


@triton.jit
def _bits(plane, row, column, inside, BITS: tl.constexpr, ALL: tl.constexpr):  # type: ignore[no-untyped-def]
    """The ``BITS`` bits that a plane holds of some columns of a row; byte j has columns j, j + size, j + 2 size, ..."""
    size: tl.constexpr = (ALL * BITS + 7) // 8
    byte = tl.load(plane + row * size + column % size, mask=inside, other=0).to(tl.int32)
    return (byte >> (column // size * BITS)) & ((1 << BITS) - 1)


@triton.jit
def _rows(  # type: ignore[no-untyped-def]
    out, first, widths, places, offsets, scales, plane16, plane8, plane4, plane2, plane1,
    ALL: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``BLOCK`` of the ``ALL`` columns of the matrix's row ``first`` + program; every row has its own width."""
    row = tl.program_id(0).to(tl.int64)
    width = tl.load(widths + first + row).to(tl.int32)
    place = tl.load(places + first + row).to(tl.int64)
    entry = offsets + width * 6
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < ALL
    made = tl.zeros([BLOCK], tl.float32)
    if width == 16:
        at = place + tl.load(entry + 1)
        made = tl.load(plane16 + at * ALL + column, mask=inside, other=0.0).to(tl.float32)
    elif width > 0:
        value = tl.zeros([BLOCK], tl.int32)
        if (width & 8) != 0:
            value = _bits(plane8, place + tl.load(entry + 2), column, inside, 8, ALL)
        if (width & 4) != 0:
            value = (value << 4) | _bits(plane4, place + tl.load(entry + 3), column, inside, 4, ALL)
        if (width & 2) != 0:
            value = (value << 2) | _bits(plane2, place + tl.load(entry + 4), column, inside, 2, ALL)
        if (width & 1) != 0:
            value = (value << 1) | _bits(plane1, place + tl.load(entry + 5), column, inside, 1, ALL)
        signed = (value - (1 << (width - 1))).to(tl.float32)
        groups: tl.constexpr = (ALL + GROUP - 1) // GROUP
        at = place + tl.load(entry)
        scale = tl.load(scales + at * groups + column // GROUP, mask=inside, other=0.0)
        made = signed * scale.to(out.dtype.element_ty).to(tl.float32)  # as plain torch rounds it
    tl.store(out + row * ALL + column, made.to(out.dtype.element_ty), mask=inside)


def _index(layer: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's width and place in the packed order, ``[rows]``, and ``Layout.offsets``; made once for a layer."""
    known: tuple[Tensor, Tensor, Tensor] | None = layer.__dict__.get("_index")
    device = layer._buffers["widths"].device  # type: ignore[union-attr]
    if known is None or known[0].device != device:
        places = torch.argsort(layer.order()).to(torch.int32)
        counts = layer.layout.counts
        sizes = torch.tensor(list(counts.values()), device=device)
        widths = torch.tensor(list(counts), dtype=torch.uint8, device=device).repeat_interleave(sizes)[places]
        known = widths, places, torch.tensor(layer.layout.offsets(), dtype=torch.int32, device=device)
        layer.__dict__["_index"] = known
    return known


def own_rows(layer: Packed, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Rows ``[stop - start, columns]`` of the matrix as ``dtype``, in its own order."""
    layout, packed, index = layer.layout, layer._buffers, _index(layer)
    out = torch.empty(stop - start, layout.columns, dtype=dtype, device=index[0].device)
    given = [packed.get(name, index[0]) for name in FIELDS]  # nothing is read of what no row has
    grid = (stop - start, triton.cdiv(layout.columns, COLUMNS))
    with torch.cuda.device(out.device):  # where the kernel is launched
        _rows[grid](out, start, *index, *given, ALL=layout.columns, GROUP=layout.group_size, BLOCK=COLUMNS)
    return out


def check() -> None:
    """Make a few rows of every width here.

    Raises:
        RuntimeError: they are not plain torch's.
    """
    layer = Packed({0: 1, **dict.fromkeys(range(2, 9), 1), 16: 1}, 48, 32, device="cuda")
    for tensor in layer.packed().values():
        tensor.fill_(1) if tensor.is_floating_point() else tensor.random_()
    layer.widths.copy_(torch.arange(8, -1, -1, dtype=torch.uint8))  # any order will do
    if not torch.equal(own_rows(layer, 0, 9, torch.float32), layer.dense()):
        raise RuntimeError("the kernel's rows are not plain torch's")
