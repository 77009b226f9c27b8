"""Bytes of the pool at the true shapes, exact arithmetic: every model and block, quantized or not. No torch.

What is counted is what a pool's files hold: packed linear weights with their scales and widths, embedding tables,
norms and biases at fp16. A language-model head that is not tied counts with its model (it is a table like the
embedding), but in no block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from assyllm.blocks.segment import segments
from assyllm.cost.shapes import Shape, shape_of
from assyllm.params import Blocks, Zoo
from assyllm.quantizer.sizes import matrix_bytes, row_bytes

GB = 1e9
GROUP = 128  # weights that share a scale at true widths, as GPTQ's models have it
BUDGETS = (3.25, 3.5, 4.0, 4.5, 4.77, 5.0, 5.5, 6.0, 7.0, 8.0)


class Precision(NamedTuple):
    """How weights are stored: share of the linear layers' rows at each width, and the width of the tables."""

    shares: dict[int, float]
    table_bits: int
    group_size: int = GROUP


FP16 = Precision({16: 1.0}, 16)


def matrices(shape: Shape) -> list[tuple[int, int]]:
    """(rows, columns) of every linear layer of one transformer layer."""
    h, f = shape.hidden, shape.intermediate
    inner = [(f, h), (f, h), (h, f)] if shape.family == "llama" else [(f, h), (h, f)]
    return [(h, h), (h, h), (shape.key_value_width, h), (shape.key_value_width, h), *inner]


def sensitivity_bytes(shape: Shape, scores: int, moments: bool) -> int:
    """Bytes of what is measured of one layer: float32 scores by row, and X'X ``[columns, columns]`` of every matrix."""
    return sum(4 * (scores * rows + (columns**2 if moments else 0)) for rows, columns in matrices(shape))


def layer_bytes(shape: Shape, precision: Precision) -> int:
    """Bytes of one layer: each matrix's rows split by the shares (whole rows, the rest at the widest), rest fp16."""
    total, weights = 0, 0
    for rows, columns in matrices(shape):
        weights += rows * columns
        if precision.shares == {16: 1.0}:
            total += 2 * rows * columns
            continue
        counts = {width: int(share * rows) for width, share in precision.shares.items()}
        counts[max(counts)] += rows - sum(counts.values())
        total += matrix_bytes(counts, columns, precision.group_size)
    return total + 2 * (shape.layer_parameters - weights)


def table_bytes(shape: Shape, rows: int, precision: Precision) -> int:
    """Bytes of ``rows`` rows of an embedding table."""
    if precision.table_bits == 16:
        return 2 * rows * shape.hidden
    return rows * row_bytes(precision.table_bits, shape.hidden, precision.group_size)


def block_bytes(shape: Shape, blocks: Blocks, precision: Precision) -> list[int]:
    """Bytes of each block of a model, first to last; the first embeds, the last has the final norm."""
    sizes = [count * layer_bytes(shape, precision) for count in segments(shape.layers, blocks)]
    sizes[0] += table_bytes(shape, shape.vocabulary + shape.positions + shape.token_types, precision)
    last = shape.hidden if shape.family == "llama" else 2 * shape.hidden
    sizes[-1] += 2 * last
    return sizes


def model_bytes(shape: Shape, blocks: Blocks, precision: Precision) -> int:
    """Bytes of a model: its blocks and, where it is not tied, its head."""
    head = 0 if shape.tied else table_bytes(shape, shape.vocabulary, precision)
    return sum(block_bytes(shape, blocks, precision)) + head


def pool_bytes(zoo: Zoo, blocks: Blocks, precision: Precision) -> int:
    """Bytes of the pool of the models that its members stand for."""
    return sum(model_bytes(shape_of(m.stands_for), blocks, precision) for m in blocks.cut(zoo).values())


def at_budget(zoo: Zoo, blocks: Blocks, bits: float, widths: tuple[int, int], table_bits: int) -> Precision | None:
    """The mix of two widths with the largest share of the wider one within ``bits`` a weight, None if none is."""
    weights = sum(shape_of(m.stands_for).parameters for m in blocks.cut(zoo).values())
    low, high = 0, 4096
    if 8 * pool_bytes(zoo, blocks, Precision({widths[0]: 1.0}, table_bits)) > bits * weights:
        return None
    while low < high:  # bytes grow with the share
        middle = (low + high + 1) // 2
        mix = Precision({widths[0]: 1 - middle / 4096, widths[1]: middle / 4096}, table_bits)
        low, high = (middle, high) if 8 * pool_bytes(zoo, blocks, mix) <= bits * weights else (low, middle - 1)
    return Precision({widths[0]: 1 - low / 4096, widths[1]: low / 4096}, table_bits)


def pool_table(zoo: Zoo, blocks: Blocks) -> list[dict[str, Any]]:
    """Pool size at 7B shapes: uniform widths, the paper's mix, and the curve over budgets."""
    weights = sum(shape_of(m.stands_for).parameters for m in blocks.cut(zoo).values())
    full = pool_bytes(zoo, blocks, FP16)
    rows = []

    def add(name: str, precision: Precision) -> None:
        size = pool_bytes(zoo, blocks, precision)
        shares = " ".join(f"{width}:{share:.4g}" for width, share in sorted(precision.shares.items()) if share)
        rows.append(
            {"precision": name, "shares": shares, "table_bits": precision.table_bits, "size_gb": size / GB,
             "bits": 8 * size / weights, "smaller_percent": 100 * (1 - size / full), "source": "modelled"}
        )  # fmt: skip

    add("FP16", FP16)
    for width in (8, 4, 3):
        add(f"INT{width}", Precision({width: 1.0}, 8))
    for budget in BUDGETS:
        pairs = ((4, 8), (3, 4)) if budget == 4.77 else ((3, 4), (4, 5), (5, 6), (6, 8))
        found = [mix for pair in pairs if (mix := at_budget(zoo, blocks, budget, pair, 8)) is not None]
        if found and budget == 4.77:
            add("paper's mix of INT4 and INT8, 4.77 bits", found[0])
        elif found:
            add(f"mix to {budget:g} bits", found[-1])
    return rows


def model_table(zoo: Zoo, blocks: Blocks) -> list[dict[str, Any]]:
    """Size of each model that a member stands for, and of its blocks, at 16 bit and at the paper's mix (exact)."""
    mix = at_budget(zoo, blocks, 4.77, (4, 8), 8)
    rows = []
    for name, member in blocks.cut(zoo).items():
        shape = shape_of(member.stands_for)
        sizes = block_bytes(shape, blocks, FP16)
        packed = block_bytes(shape, blocks, mix) if mix is not None else sizes
        pairs = zip(segments(shape.layers, blocks), sizes, packed, strict=True)
        for number, (layers, size, small) in enumerate(pairs, start=1):
            rows.append(_size_row(name, member.stands_for, f"block {number}", layers, size, small))
        whole = [model_bytes(shape, blocks, p) if p is not None else 0 for p in (FP16, mix)]
        head = [whole[0] - sum(sizes), whole[1] - sum(packed)]
        if head[0]:
            rows.append(_size_row(name, member.stands_for, "head", 0, *head))
        rows.append(_size_row(name, member.stands_for, "model", shape.layers, *whole))
    return rows


def _size_row(model: str, stands_for: str, part: str, layers: int, size: int, small: int) -> dict[str, Any]:
    return {
        "model": model, "stands_for": stands_for, "part": part, "layers": layers, "fp16_gb": size / GB,
        "mixed_gb": small / GB, "source": "modelled",
    }  # fmt: skip
