"""Memory of the clients' devices (paper figure 13)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("cost",)
MODELS = {"llama_7b": "llama-7b", "opt_6_7b": "opt-6.7b"}  # column -> shape


def data(tables: Tables) -> pd.DataFrame:
    """One row per memory class: its share, and the fine-tuning methods that it can run."""
    cost = tables.cost
    cost = cost[cost["method"] == "ft_practical"]
    df = cost.drop_duplicates("memory_gb")[["memory_gb", "share", "source"]]
    for column, shape in MODELS.items():
        theirs = cost[cost["stands_for"] == shape].drop_duplicates("memory_gb").set_index("memory_gb")["participates"]
        df = df.assign(**{column: df["memory_gb"].map(theirs) if len(theirs) else ""})
    return df.sort_values("memory_gb").reset_index(drop=True)


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """Bars of the share per class; the classes that can fine-tune a model in full are marked."""
    figure, ax = plt.subplots(figsize=(look.width_inches * 0.6, look.width_inches * 0.38), layout="constrained")
    bars = ax.bar([f"{gb} GB" for gb in df["memory_gb"]], 100 * df["share"], color="#56B4E9", width=0.65)
    for bar, row in zip(bars, df.itertuples(), strict=True):
        can = [style.model_label(shape) for column, shape in MODELS.items() if getattr(row, column)]
        note = f"{100 * row.share:g} %" + ("\nfull FT of\n" + ",\n".join(can) if can else "")
        ax.text(bar.get_x() + bar.get_width() / 2, bar.get_height() + 0.5, note, ha="center", va="bottom")
    style.percent_axis(ax, 0, 40)
    ax.set_xlabel("device memory")
    ax.set_ylabel("share of clients")
    ax.grid(axis="x", visible=False)
    style.caption(figure, df, "Memory of the clients' devices, and the classes that can fine-tune a 7B model in full.")
    return figure
