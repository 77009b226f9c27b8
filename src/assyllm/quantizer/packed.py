"""Layers that compute from packed rows (:mod:`assyllm.quantizer.planes`), forward and backward to their input."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from assyllm.artifacts import ArtifactError
from assyllm.quantizer.planes import NAMES, Layout

# weights that are float at any moment: a tile of rows that stays in a CPU's cache; larger on a GPU
TILE_WEIGHTS = {"cpu": 1 << 20, "cuda": 1 << 25}


ASKED = torch.empty(0)  # saved and asked for in the backward pass, so that a checkpoint runs the layer again


class Packed(nn.Module):
    """A frozen matrix ``[rows, columns]`` of rows of unlike widths; its buffers are the packed tensors.

    Args:
        counts: rows of each width (see :mod:`assyllm.quantizer.planes`).
    """

    widths: Tensor

    def __init__(self, counts: Mapping[int, int], columns: int, group_size: int, device: Any = None) -> None:
        super().__init__()
        self.layout = Layout(counts, columns, group_size)
        for name, (shape, dtype) in self.layout.shapes().items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))

    @property
    def mixed(self) -> bool:
        """Whether the packed order of rows may differ from the matrix's own."""
        return len(self.layout.counts) > 1

    def packed(self) -> dict[str, Tensor]:
        """The packed tensors by name."""
        return {name: getattr(self, name) for name in NAMES if name in self._buffers}

    def order(self) -> Tensor:
        """The matrix's row that stands at each packed row, ``[rows]`` int64."""
        return torch.argsort(self.widths.int(), stable=True)

    def weight_rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Some rows in packed order as floating point."""
        return self.layout.rows_of(self.packed(), start, stop, dtype)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix that the packed one stands for, rows in their own order."""
        rows = self.weight_rows(0, self.layout.rows, dtype)
        return torch.empty_like(rows).index_copy_(0, self.order(), rows) if self.mixed else rows

    def extra_repr(self) -> str:
        """Shape and rows by width."""
        return f"rows={self.layout.rows}, columns={self.layout.columns}, widths={self.layout.counts}"


class _PackedLinear(torch.autograd.Function):
    """x W' + b tile by tile, each made float on the fly, in the backward pass again.

    On a CPU a matrix that is one tile is put in its own order before the product, else the products are after it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(ASKED)
        flat = x.reshape(-1, x.shape[-1])
        if layer.small:
            out = flat @ layer.whole(x.dtype).T
        else:
            out = flat.new_empty(flat.shape[0], layer.out_features)
            rows, order = layer.source()
            for low, high in layer.tiles():
                if order is None:
                    torch.mm(flat, rows(low, high, x.dtype).T, out=out[:, low:high])
                else:
                    part = flat @ rows(low, high, x.dtype).T
                    out.index_copy_(-1, order[low:high], part)
        if layer.bias is not None:
            out += layer.bias.to(x.dtype)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        layer, grad, _ = ctx.layer, grads[0], ctx.saved_tensors
        if any(buffer.is_meta for buffer in layer.buffers()):
            raise ArtifactError("a packed layer left memory before its gradient came")
        flat = grad.reshape(-1, grad.shape[-1])
        rows, order = layer.source()
        if order is not None:
            flat = flat.index_select(-1, order)
        if layer.small:
            weight = layer.whole(grad.dtype)
            out = flat @ (weight if order is None else weight.index_select(0, order))
        else:
            (_, first), *more = layer.tiles()
            out = flat[:, :first] @ rows(0, first, grad.dtype)
            for low, high in more:
                out.addmm_(flat[:, low:high], rows(low, high, grad.dtype))
        return out.view(*grad.shape[:-1], -1), None


class PackedLinear(Packed):
    """``nn.Linear`` with a packed, frozen weight; ``bias`` fp16 or absent.

    ``keeps``: whether the float matrix stays once it was made (it is no part of the layer's state).
    """

    bias: Tensor | None
    keeps = False
    _whole: Tensor | None = None

    def __init__(
        self, counts: Mapping[int, int], in_features: int, group_size: int, bias: bool, device: Any = None
    ) -> None:
        super().__init__(counts, in_features, group_size, device)
        self.in_features, self.out_features = in_features, self.layout.rows
        spare = torch.zeros(self.out_features, dtype=torch.float16, device=device) if bias else None
        self.register_buffer("bias", spare)

    def tiles(self) -> list[tuple[int, int]]:
        """Row ranges that are made float together."""
        step = max(1, TILE_WEIGHTS.get(self.widths.device.type, 1 << 20) // self.in_features)
        return [(low, min(low + step, self.out_features)) for low in range(0, self.out_features, step)]

    @property
    def small(self) -> bool:
        """Whether the whole matrix is one tile of a CPU's."""
        return self.widths.device.type == "cpu" and self.layout.rows * self.in_features <= TILE_WEIGHTS["cpu"]

    def whole(self, dtype: torch.dtype) -> Tensor:
        """:meth:`dense`, made once if the layer ``keeps`` it."""
        if not self.keeps:
            return self.dense(dtype)
        if self._whole is None or self._whole.dtype != dtype:
            self._whole = self.dense(dtype)
        return self._whole

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the input's dtype; gradients reach the input."""
        return _PackedLinear.apply(x, self)

    def source(self) -> tuple[Callable[[int, int, torch.dtype], Tensor], Tensor | None]:
        """What makes some rows float, and which of the matrix's those are (None: its own order)."""
        own = kernel() if self.widths.is_cuda else None
        if own is not None:
            return partial(own, self), None
        return self.weight_rows, self.order() if self.mixed else None


@cache
def kernel() -> Callable[[Packed, int, int, torch.dtype], Tensor] | None:
    """What makes rows float on a CUDA device (:func:`assyllm.quantizer.cuda.own_rows`); None where it does not run."""
    try:
        from assyllm.quantizer import cuda

        cuda.check()
    except Exception as error:  # no triton, or nothing that it could compile with
        why = str(error).partition("\n")[0]
        warnings.warn(f"packed layers are unpacked by plain torch, several times slower ({why})", stacklevel=2)
        return None
    return cuda.own_rows


class PackedEmbedding(Packed):
    """``nn.Embedding`` with a packed table of one width; only the rows looked up are made float."""

    def __init__(self, width: int, rows: int, columns: int, group_size: int, device: Any = None) -> None:
        super().__init__({width: rows}, columns, group_size, device)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids ``[...]`` to float32 vectors ``[..., d]``."""
        wanted, places = ids.unique(return_inverse=True)
        found = {name: tensor[wanted] for name, tensor in self.packed().items()}
        width = next(iter(self.layout.counts))
        part = Layout({width: len(wanted)}, self.layout.columns, self.layout.group_size)
        return part.rows_of(found, 0, len(wanted), torch.float32)[places]
