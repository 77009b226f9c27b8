"""Bytes of packed weights by arithmetic: what allocation spends and what the tables quote. No torch.

A row's width is the number of bits of each of its weights. A packed row costs its weights, one fp16 scale for every
group, and one byte that says the width; a row of width 16 is kept as fp16, one of width 0 is pruned.
"""

from __future__ import annotations

from collections.abc import Mapping

PLANES = (16, 8, 4, 2, 1)
WIDTHS = (0, 2, 3, 4, 5, 6, 7, 8, 16)  # a width's binary digits are the bit planes that its rows have


def plane_bytes(plane: int, columns: int) -> int:
    """Bytes of one row's part in a bit plane: ``plane`` bits of each of ``columns`` weights, whole bytes."""
    return -(-columns * plane // 8)


def row_bytes(width: int, columns: int, group_size: int) -> int:
    """Bytes of one row of ``columns`` weights at ``width`` bits, scales and the byte of its width included."""
    weights = sum(plane_bytes(plane, columns) for plane in PLANES if width & plane)
    scales = 2 * -(-columns // group_size) if 0 < width < 16 else 0
    return weights + scales + 1


def matrix_bytes(counts: Mapping[int, int], columns: int, group_size: int) -> int:
    """Bytes of a packed matrix of which ``counts[width]`` rows have each width."""
    return sum(count * row_bytes(width, columns, group_size) for width, count in counts.items())
