"""Uniform symmetric integers per group, and their packing: what lies on disk and in a device's memory.

A weight matrix [out, in] is cut along ``in`` into groups of ``group_size`` (the last one may be shorter). A
group's weights w are stored as integers q with one fp16 scale s, w ~ q s: INT8 in -127..127, INT4 in -7..7,
two INT4 to a byte (the even column in the low half). There are no zero points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assyllm.artifacts import ArtifactError

LEVELS = {8: 127, 4: 7}  # largest integer of each width


def quantize(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Quantize and pack a weight matrix.

    Args:
        weight: ``[out, in]`` floating point, finite.
        bits: 4 or 8.
        group_size: weights that share a scale.

    Returns:
        ``qweight`` (``[out, in]`` int8, or ``[out, ceil(in / 2)]`` uint8) and ``scales``
        (``[out, ceil(in / group_size)]`` fp16).

    Raises:
        ArtifactError: another number of bits, a weight that is not finite, or a scale beyond fp16.
    """
    if bits not in LEVELS:
        raise ArtifactError(f"quantize.bits: {bits} has no integer packing; 4 or 8")
    weight = weight.detach().float()
    if not torch.isfinite(weight).all():
        raise ArtifactError("a weight is not finite; it cannot be quantized")
    rows, columns = weight.shape
    groups = -(-columns // group_size)
    padded = torch.zeros(rows, groups * group_size)
    padded[:, :columns] = weight
    grouped = padded.view(rows, groups, group_size)
    scales = (grouped.abs().amax(-1) / LEVELS[bits]).half()
    if not torch.isfinite(scales).all():
        raise ArtifactError("a group's scale is beyond fp16")
    # Rounding uses the scale as stored; a group whose scale underflows to 0 becomes 0.
    steps = scales.float().unsqueeze(-1)
    whole = torch.where(steps > 0, grouped / steps.clamp(min=1e-12), 0.0).round()
    whole = whole.clamp(-LEVELS[bits], LEVELS[bits]).to(torch.int8).view(rows, -1)[:, :columns]
    return (pack_int4(whole) if bits == 4 else whole.contiguous()), scales


def dequantize(qweight: Tensor, scales: Tensor, columns: int, group_size: int) -> Tensor:
    """The float32 weight matrix ``[out, columns]`` of a packed one."""
    whole = unpack_int4(qweight, columns) if qweight.dtype == torch.uint8 else qweight
    steps = scales.float().repeat_interleave(group_size, dim=1)[:, :columns]
    return whole.float() * steps


def pack_int4(whole: Tensor) -> Tensor:
    """Integers -8..7 ``[out, in]`` int8 to two in a byte ``[out, ceil(in / 2)]`` uint8."""
    if whole.shape[1] % 2:
        whole = torch.nn.functional.pad(whole, (0, 1))
    half = (whole & 0x0F).to(torch.uint8)
    return half[:, 0::2] | (half[:, 1::2] << 4)


def unpack_int4(packed: Tensor, columns: int) -> Tensor:
    """The inverse of :func:`pack_int4`: ``[out, columns]`` int8."""
    pair = torch.stack((packed & 0x0F, packed >> 4), dim=-1).view(packed.shape[0], -1)[:, :columns]
    return ((pair.to(torch.int8) ^ 8) - 8).contiguous()
