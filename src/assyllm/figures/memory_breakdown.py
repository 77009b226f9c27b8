"""What fills the memory of a step on Llama-7B, by method (paper figures 4 and 5)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.cost.same_step import SAME_STEP
from assyllm.figures import style
from assyllm.figures.tables import OF_PAPER, Tables
from assyllm.params import HEADS, NO_DEVICE, Figures

READS = ("cost", "curves", "paper")
CATEGORIES = {
    "parameters": "#0072B2", "activations": "#56B4E9", "gradients": "#E69F00", "optimizer": "#009E73",
    "temporary": "#999999", "workspace": "#333333",
}  # fmt: skip
FULL = 45.0  # GB; what the paper's reductions are relative to


def paper_peaks(paper: pd.DataFrame) -> dict[str, float]:
    """The paper's peak memory in GB by method; its percentages are turned into GB with its own 45 GB."""
    peaks = {}
    for row in paper.itertuples():
        method = OF_PAPER.get(row.method, row.method)
        if row.metric == "peak_memory":
            peaks[method] = float(row.value)
        elif row.metric in ("memory_reduction_vs_full_ft", "memory_reduction_vs_full_FT"):
            peaks[method] = FULL * (1 - float(row.value) / 100)
    return peaks


def data(tables: Tables) -> pd.DataFrame:
    """One row per method and category (GB), with the AdamW total and the paper's where there are any."""
    cost = tables.cost[(tables.cost["stands_for"] == "llama-7b")].drop_duplicates("method")
    curves = tables.curves[(tables.curves["varies"] == "optimizer") & (tables.curves["optimizer"] == "adamw")]
    adamw = dict(zip(curves["method"], curves["peak_gb"], strict=True))
    paper = paper_peaks(tables.paper)
    rows = []
    for row in cost.itertuples():
        if row.method in SAME_STEP or row.method in (*NO_DEVICE, "zero_shot", *HEADS):
            continue
        for category in CATEGORIES:
            rows.append(
                {
                    "method": row.method, "category": category, "value": getattr(row, f"{category}_gb"),
                    "source": "modelled",
                }
            )  # fmt: skip
        if row.method in adamw:
            rows.append({"method": row.method, "category": "adamw", "value": adamw[row.method], "source": "modelled"})
        if row.method in paper:
            rows.append({"method": row.method, "category": "paper", "value": paper[row.method], "source": "paper"})
    return tables.with_step(pd.DataFrame(rows))


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """Stacked bars; a line at the total with AdamW, a star at the paper's value."""
    methods = style.methods_in(df)[::-1]
    figure, ax = plt.subplots(figsize=(look.width_inches, 0.3 * len(methods) + 1.1), layout="constrained")
    used = set(df[(df["source"] == "modelled") & (df["value"] > 0)]["category"])
    for y, method in enumerate(methods):
        mine = df[df["method"] == method].set_index("category")["value"]
        left = 0.0
        for category, colour in CATEGORIES.items():
            if category not in used:
                continue
            ax.barh(y, mine[category], left=left, color=colour, height=0.66, label=category if y == 0 else None)
            left += mine[category]
        if "adamw" in mine:
            ax.plot([mine["adamw"]] * 2, [y - 0.36, y + 0.36], color="black", lw=1.2, ls=":",
                    label="total with AdamW" if method == methods[-1] else None)  # fmt: skip
        if "paper" in mine:
            ax.scatter(mine["paper"], y, **{**style.PAPER, "label": "paper" if method == methods[-1] else None})
        near = [mine[name] for name in ("adamw", "paper") if name in mine and left <= mine[name] < left + 5]
        ax.text(max([left, *near]) + 1.5, y - 0.02, f"{left:.1f}", va="center", fontsize=7)
    ax.set_yticks(range(len(methods)), [style.label(m) for m in methods])
    ax.set_xlabel("peak memory of a step, GB")
    ax.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    style.caption(
        figure, df,
        f"Llama-7B, {style.batch(df)}, fused attention (dotted: with AdamW). The paper "
        "states lower bounds for full fine-tuning and percentages for the rest, here of its 45 GB; its QLoRA (at "
        "most 79 % less: 9.5 GB) would not run on the 8 GB devices that its 70 % participation needs.",
    )  # fmt: skip
    return figure
