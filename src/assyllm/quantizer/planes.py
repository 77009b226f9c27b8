"""Rows of integers of unlike widths in bit planes: what lies on disk and in a device's memory.

A matrix [out, in] is quantized row by row: a row's weights w are integers q with one fp16 scale s for every
``group_size`` of them (the last group may be shorter), w ~ q s, q in -L..L with L = 2^(width - 1) - 1; no zero points.
Rows lie sorted by width. A row of width b has its bits in the planes whose sizes are b's binary digits
(6 = 4 + 2: its high four bits in ``plane4``, its low two in ``plane2``), so INT4 is two to a byte, three bits are
three bits, and a matrix may mix widths at no cost. A plane's byte j holds the columns j, j + B, j + 2B, ..., B bytes
a row, so that unpacking is shifts of whole rows.

Tensors of a packed matrix, absent where no row needs them: ``widths`` [out] uint8, ``scales`` [rows of width 2..8,
groups] fp16, ``plane8`` ``plane4`` ``plane2`` ``plane1`` [rows with the plane, B] uint8, ``plane16`` [rows of width
16, in] fp16.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from assyllm.artifacts import ArtifactError
from assyllm.quantizer.sizes import PLANES, WIDTHS, plane_bytes

SMALLEST = 2.0**-24  # of fp16 above 0, and the distance between its smallest numbers
NAMES = ("widths", "scales", *(f"plane{plane}" for plane in PLANES))


def levels(widths: Tensor) -> Tensor:
    """Largest integer of each width, 2^(b - 1) - 1, as float32; 1 where nothing is rounded (widths 0 and 16)."""
    top = 2.0 ** (widths.float() - 1) - 1
    return torch.where((widths > 0) & (widths < 16), top, 1.0)


def check_weight(weight: Tensor, name: str = "a weight") -> Tensor:
    """The float32 weight.

    Raises:
        ArtifactError: it is not finite, or beyond fp16.
    """
    weight = weight.detach().float()
    if not torch.isfinite(weight).all():
        raise ArtifactError(f"{name} is not finite; it cannot be quantized")
    if weight.numel() and float(weight.abs().max()) > torch.finfo(torch.float16).max:
        raise ArtifactError(f"{name} is beyond fp16")
    return weight


def group_scales(weight: Tensor, widths: Tensor, group_size: int) -> Tensor:
    """fp16 scales ``[rows, groups]`` that map a group's largest weight to the width's largest integer.

    Where fp16 has few numbers left, a scale is rounded up: rounded to nearest it would cut the largest weights, or
    be 0 and lose the whole group.
    """
    rows, columns = weight.shape
    groups = -(-columns // group_size)
    padded = torch.nn.functional.pad(weight.abs(), (0, groups * group_size - columns))
    top = levels(widths)[:, None]
    scales = padded.view(rows, groups, group_size).amax(-1) / top
    above = (scales / SMALLEST).ceil() * SMALLEST
    return torch.where(scales < top * SMALLEST, above, scales).half()


def to_integers(weight: Tensor, scales: Tensor, widths: Tensor) -> Tensor:
    """Nearest integers of ``weight`` [rows, n] under ``scales`` that broadcast to it; 0 where a scale is 0."""
    steps = scales.float()
    whole = torch.where(steps > 0, weight / steps.clamp(min=1e-12), 0.0).round()
    top = levels(widths)[:, None]
    return torch.minimum(torch.maximum(whole, -top), top)


def nearest(weight: Tensor, widths: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Plain rounding: integers ``[rows, columns]`` int8 and scales ``[rows, groups]`` fp16."""
    scales = group_scales(weight, widths, group_size)
    spread = scales.repeat_interleave(group_size, dim=1)[:, : weight.shape[1]]
    return to_integers(weight, spread, widths).to(torch.int8), scales


def restore(whole: Tensor, scales: Tensor, weight: Tensor, widths: Tensor, group_size: int) -> Tensor:
    """The float32 matrix that integers and scales stand for; rows of width 16 are at fp16, of width 0 zero."""
    back = whole.float() * scales.float().repeat_interleave(group_size, dim=1)[:, : weight.shape[1]]
    back = torch.where((widths == 16)[:, None], weight.half().float(), back)
    return torch.where((widths == 0)[:, None], 0.0, back)


def pack(whole: Tensor, scales: Tensor, weight: Tensor, widths: Tensor) -> dict[str, Tensor]:
    """Integers into planes.

    Args:
        whole: ``[out, in]`` int8, each row within its width.
        scales: ``[out, groups]`` fp16.
        weight: ``[out, in]`` the matrix itself, for rows of width 16.
        widths: ``[out]`` uint8.

    Raises:
        ArtifactError: a width that has no packing.
    """
    odd = sorted(set(widths.tolist()) - set(WIDTHS))
    if odd:
        raise ArtifactError(f"{odd[0]} bits have no packing; {', '.join(map(str, WIDTHS))} have")
    order = torch.argsort(widths.int(), stable=True)
    in_order = widths[order]
    packed = {"widths": widths}
    integers = (in_order > 0) & (in_order < 16)
    if integers.any():
        packed["scales"] = scales[order[integers]]
    for plane in PLANES:
        rows = order[(in_order & plane) > 0]
        if not len(rows):
            continue
        if plane == 16:
            packed["plane16"] = weight[rows].half()
            continue
        width = widths[rows].int()
        unsigned = whole[rows].int() + (1 << (width - 1))[:, None]
        bits = (unsigned >> (width & (plane - 1))[:, None]) & ((1 << plane) - 1)
        packed[f"plane{plane}"] = _pack_plane(bits, plane)
    return packed


def _pack_plane(bits: Tensor, plane: int) -> Tensor:
    size = plane_bytes(plane, bits.shape[1])
    bits = torch.nn.functional.pad(bits, (0, size * (8 // plane) - bits.shape[1]))
    out = torch.zeros(bits.shape[0], size, dtype=torch.uint8, device=bits.device)
    for part in range(8 // plane):
        out |= (bits[:, part * size : (part + 1) * size] << (part * plane)).to(torch.uint8)
    return out


def _unpack_plane(packed: Tensor, plane: int, columns: int) -> Tensor:
    if plane == 8:
        return packed
    size, mask = packed.shape[1], (1 << plane) - 1
    bits = torch.empty(packed.shape[0], size * (8 // plane), dtype=torch.uint8, device=packed.device)
    last = 8 // plane - 1
    for part in range(last):
        torch.bitwise_and(packed >> (part * plane), mask, out=bits[:, part * size : (part + 1) * size])
    torch.bitwise_right_shift(packed, last * plane, out=bits[:, last * size :])
    return bits[:, :columns]


class Layout:
    """Where the rows of each width lie in the planes of one matrix.

    Args:
        counts: rows of each width.
    """

    def __init__(self, counts: Mapping[int, int], columns: int, group_size: int) -> None:
        self.counts = {width: counts[width] for width in sorted(counts) if counts[width]}
        self.columns, self.group_size = columns, group_size
        ends = list(accumulate(self.counts.values(), initial=0))
        self.rows = ends[-1]
        self.starts = dict(zip(self.counts, ends[:-1], strict=True))
        self.integers = sum(n for width, n in self.counts.items() if 0 < width < 16)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each packed tensor, by name."""
        found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"widths": ((self.rows,), torch.uint8)}
        if self.integers:
            found["scales"] = ((self.integers, -(-self.columns // self.group_size)), torch.float16)
        for plane in PLANES:
            rows = self._before(plane, 17)
            if rows and plane == 16:
                found["plane16"] = ((rows, self.columns), torch.float16)
            elif rows:
                found[f"plane{plane}"] = ((rows, plane_bytes(plane, self.columns)), torch.uint8)
        return found

    def _before(self, plane: int, width: int) -> int:
        """Rows narrower than ``width`` that have the plane."""
        return sum(n for b, n in self.counts.items() if b < width and b & plane)

    def _scales_before(self, width: int) -> int:
        """Rows narrower than ``width`` that have scales."""
        return sum(n for b, n in self.counts.items() if 0 < b < min(width, 16))

    def offsets(self) -> list[list[int]]:
        """By width ``[17, 6]``: a row's place in the packed order to its row in ``scales`` and each of :data:`PLANES`.

        Numbers to add; 0 where the width has no rows, without meaning where it lacks the tensor.
        """
        found = [[0] * (1 + len(PLANES)) for _ in range(17)]
        for width, start in self.starts.items():
            rows = [self._scales_before(width), *(self._before(plane, width) for plane in PLANES)]
            found[width] = [row - start for row in rows]
        return found

    def rows_of(self, packed: Mapping[str, Tensor], start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """The weights ``[stop - start, in]`` of some rows, in the packed order."""
        parts = []
        for width, first in self.starts.items():
            low, high = max(start, first), min(stop, first + self.counts[width])
            if low < high:
                parts.append(self._segment(packed, width, low - first, high - first, dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _segment(self, packed: Mapping[str, Tensor], width: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
        if width == 16:
            return packed["plane16"][low:high].to(dtype)
        if width == 0:
            return torch.zeros(high - low, self.columns, dtype=dtype, device=packed["widths"].device)
        unsigned: Tensor | None = None
        for plane in PLANES[1:]:
            if width & plane:
                at = self._before(plane, width)
                bits = _unpack_plane(packed[f"plane{plane}"][at + low : at + high], plane, self.columns)
                unsigned = bits if unsigned is None else (unsigned << plane) | bits
        assert unsigned is not None
        middle = 1 << (width - 1)  # stands for 0; 8 bits wrap around
        signed = (unsigned ^ middle).view(torch.int8) if width == 8 else unsigned.view(torch.int8) - middle
        at = self._scales_before(width)
        scales = packed["scales"][at + low : at + high].to(dtype)
        rows, columns = signed.shape
        made = signed.to(dtype)
        if columns % self.group_size:
            return made.mul_(scales.repeat_interleave(self.group_size, dim=1)[:, :columns])
        return made.view(rows, -1, self.group_size).mul_(scales.unsqueeze(-1)).view(rows, columns)
