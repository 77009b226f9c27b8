"""Boxes and arrows: diagrams drawn by code, the same bytes each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from assyllm.params import Figures

FACES = {"server": "#DCE9F5", "device": "#FBE6D4", "offline": "#E3EFE3", "data": "#EEEEEE", "frame": "#FFFFFF"}
COLUMNS = ["kind", "name", "text", "x", "y", "width", "height", "face", "start", "end", "bend", "source"]


@dataclass(frozen=True)
class Box:
    """A box with its lower left corner at (x, y); ``name`` is what arrows refer to."""

    name: str
    text: str
    x: float
    y: float
    width: float
    height: float
    face: str = "data"


@dataclass(frozen=True)
class Arrow:
    """An arrow from one box's side to another's: ``start`` and ``end`` are ``name.side``, side one of l r t b."""

    start: str
    end: str
    text: str = ""
    bend: float = 0.0  # of the arc, 0: straight


def table(boxes: Sequence[Box], arrows: Sequence[Arrow]) -> pd.DataFrame:
    """A diagram as a table, one row a box or arrow."""
    rows = [{"kind": "box", **asdict(box)} for box in boxes] + [{"kind": "arrow", **asdict(arrow)} for arrow in arrows]
    return pd.DataFrame([dict.fromkeys(COLUMNS, "") | row for row in rows], columns=COLUMNS)


def draw(df: pd.DataFrame, look: Figures, height: float) -> Figure:
    """Draw such a table on a field 100 wide and ``height`` high (unit: a hundredth of the figure's width)."""
    figure, ax = plt.subplots(figsize=(look.width_inches, look.width_inches * height / 100))
    figure.subplots_adjust(0, 0, 1, 1)
    ax.set_xlim(0, 100)
    ax.set_ylim(0, height)
    ax.axis("off")
    places = {}
    for row in df[df["kind"] == "box"].itertuples():
        x, y, width, tall = (float(v) for v in (row.x, row.y, row.width, row.height))
        places[row.name] = {
            "l": (x, y + tall / 2), "r": (x + width, y + tall / 2), "t": (x + width / 2, y + tall),
            "b": (x + width / 2, y),
        }  # fmt: skip
        frame = row.face == "frame"
        ax.add_patch(
            FancyBboxPatch((x, y), width, tall, boxstyle="round,pad=0,rounding_size=1", fc=FACES[row.face],
                           ec="#555555", lw=0.8, ls="--" if frame else "-", zorder=0 if frame else 2)
        )  # fmt: skip
        title, _, rest = row.text.partition("\n")
        middle = y + tall / 2
        if frame:
            ax.text(x + 1.2, y + tall - 1.2, title, ha="left", va="top", fontsize=8, weight="bold", zorder=3)
        elif rest:
            lift = 1.2 * (rest.count("\n") + 1)
            ax.text(x + width / 2, middle + lift, title, ha="center", va="center", fontsize=8, weight="bold", zorder=3)
            ax.text(x + width / 2, middle - 1.2, rest, ha="center", va="center", fontsize=7, zorder=3, linespacing=1.15)
        else:
            ax.text(x + width / 2, middle, title, ha="center", va="center", fontsize=8, weight="bold", zorder=3)
    for row in df[df["kind"] == "arrow"].itertuples():
        (a, p), (b, q) = row.start.split("."), row.end.split(".")
        start, end = places[a][p], places[b][q]
        ax.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, lw=1, color="black", shrinkA=0, shrinkB=0,
                            connectionstyle=f"arc3,rad={float(row.bend)}", zorder=4)
        )  # fmt: skip
        if row.text:
            ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, row.text, ha="center", va="center", fontsize=7,
                    zorder=5, linespacing=1.15, bbox={"fc": "white", "ec": "none", "pad": 1.0})  # fmt: skip
    return figure
