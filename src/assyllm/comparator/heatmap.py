"""The heatmap of a comparison: CKA, COR and compatibility, layer against layer."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from assyllm.artifacts import ArtifactError, write_bytes

if TYPE_CHECKING:
    from assyllm.comparator.models import Comparison, Scores

FORMATS = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}, "svg": {"Date": None}}


def format_of(path: Path) -> str:
    """What a picture of that name is written as.

    Raises:
        ArtifactError: a file ending that is none of png, pdf, svg.
    """
    suffix = path.suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise ArtifactError(f"{path}: a heatmap is written as {', '.join(FORMATS)}")
    return suffix


def draw(table: Comparison, path: Path) -> Path:
    """Write the picture whole or not at all; cells without a score are left grey.

    Raises:
        ArtifactError: a file ending that is none of png, pdf, svg.
    """
    from matplotlib.figure import Figure

    suffix = format_of(path)
    panels = (("CKA", table.cka), ("COR", table.cor), ("compatibility", table.compatibility))
    height, width = len(table.cka), len(table.cka[0])
    cell = min(0.3, 6 / max(height, width))
    figure = Figure(figsize=(3 * (cell * width + 0.9), cell * height + 1.1), dpi=150, layout="constrained")
    for ax, (title, scores) in zip(figure.subplots(1, 3), panels, strict=True):
        ax.set_facecolor("0.8")
        image = ax.imshow(_masked(scores), vmin=0, vmax=1, cmap="viridis", origin="lower")
        ax.set_title(title, fontsize=9)
        ax.set_xlabel(f"layer of {_short(table.b)}", fontsize=8)
        ax.set_ylabel(f"layer of {_short(table.a)}", fontsize=8)
        ax.tick_params(labelsize=7)
        ax.locator_params(integer=True)
    figure.colorbar(image, ax=figure.axes, shrink=0.8).ax.tick_params(labelsize=7)
    buffer = BytesIO()
    figure.savefig(buffer, format=suffix, metadata=FORMATS[suffix])
    write_bytes(path, buffer.getvalue())
    return path


def _masked(scores: Scores) -> np.ma.MaskedArray:
    hidden = np.array([[score is None for score in row] for row in scores])
    return np.ma.masked_array([[0.0 if score is None else score for score in row] for row in scores], hidden)


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]
