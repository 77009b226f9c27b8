"""Layers of two pairs of models on the same examples, in two common spaces (paper figure 9)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("feature_differences",)
SPACES = {"columns": "standardised columns", "cosines": "cosines between examples"}
MARKERS = ("o", "^")


def data(tables: Tables) -> pd.DataFrame:
    """Points of every layer and example, and CKA of every pair of layers."""
    return tables.feature_differences


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """A column a pair and space; shape by model, darker with depth."""
    points = df[df["what"] == "point"].astype({"x": float, "y": float, "layer": int})
    pairs = list(points["pair"].unique())
    figure, axes = plt.subplots(
        1, len(pairs) * len(SPACES), figsize=(look.width_inches, look.width_inches * 0.37), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for i, pair in enumerate(pairs):
        first, second = pair.split()
        colours = dict(zip((first, second), (plt.get_cmap("Blues"), plt.get_cmap("Oranges")), strict=True))
        for j, (space, title) in enumerate(SPACES.items()):
            ax = axes[0][i * len(SPACES) + j]
            mine = points[(points["pair"] == pair) & (points["space"] == space)]
            for model, shape in zip((first, second), MARKERS, strict=True):
                depth = int(mine[mine["model"] == model]["layer"].max())
                for layer, group in mine[mine["model"] == model].groupby("layer"):
                    shade = colours[model](0.3 + 0.65 * (layer - 1) / max(1, depth - 1))
                    ax.scatter(group["x"], group["y"], s=6, marker=shape, color=shade, lw=0)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[["top", "right"]].set_visible(True)
            ax.set_title(f"{style.model_label(first)} and {style.model_label(second)}", fontsize=look.font_points)
            ax.set_xlabel(title)
    blue, orange = plt.get_cmap("Blues")(0.8), plt.get_cmap("Oranges")(0.8)
    sides = [" or ".join(dict.fromkeys(style.model_label(p.split()[i]) for p in pairs)) for i in (0, 1)]
    handles = [
        Line2D([], [], ls="", marker=shape, color=colour, label=text)
        for shape, colour, text in zip(MARKERS, (blue, orange), sides, strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    examples = int(points["example"].astype(int).max()) + 1
    style.caption(
        figure, df, f"t-SNE of {examples} examples' states after every layer (darker: deeper), from a shared PCA. "
        "Standardised columns, the narrower model filled with zeros: columns of two models do not correspond, so "
        "unlike widths part by themselves. Cosines between examples of a layer, which CKA compares, have no width. "
        f"{alike(df)}", scale="tiny models pre-trained here",
    )  # fmt: skip
    return figure


def alike(df: pd.DataFrame) -> str:
    """Mean and range of the layers' CKA by pair, in words."""
    parts = []
    for pair, group in df[df["what"] == "cka"].groupby("pair", sort=False):
        first, second = map(style.model_label, pair.split())
        value = group["value"].astype(float)
        parts.append(f"{first} with {second} {value.mean():.2f} ({value.min():.2f} to {value.max():.2f})")
    return f"CKA between their layers, mean and range: {', '.join(parts)}."
