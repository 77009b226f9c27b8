"""Peak memory of all methods over sequence length, batch, and the pool's residency and precision (paper figure 18)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from assyllm.figures import style
from assyllm.figures.memory_breakdown import paper_peaks
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("curves", "paper")
CLASSES = (4, 8, 16, 32, 64)
SCORING = "assyllm"  # whose step is scoring alone
PANELS = {"tokens": "tokens of a row", "batch": "rows of a batch"}


def data(tables: Tables) -> pd.DataFrame:
    """One row per method and point of a curve (GB); the paper's values at its own reading."""
    rows = [
        {
            "method": r.method, "varies": r.varies, "x": getattr(r, r.varies), "optimizer": r.optimizer,
            "bits": r.bits, "resident_blocks": r.resident_blocks, "batch": r.batch, "tokens": r.tokens,
            "value": r.peak_gb, "source": "modelled",
        }
        for r in tables.curves.itertuples()
    ]  # fmt: skip
    for method, value in paper_peaks(tables.paper).items():
        rows.append(
            {"method": method, "varies": "tokens", "x": 256, "optimizer": "", "bits": "", "resident_blocks": "",
             "batch": "", "tokens": "", "value": value, "source": "paper"}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _other(ours: pd.DataFrame, varies: str, what: str) -> int:
    """What stays as it is along a curve."""
    return int(ours[ours["varies"] == varies][what].iloc[0])


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """Lines over tokens and rows; bars of AssyLLM's peak over resident blocks and bits. Memory classes as lines."""
    figure, axes = plt.subplots(
        1, 3, figsize=(look.width_inches, look.width_inches * 0.44), layout="constrained", sharey=True,
        gridspec_kw={"width_ratios": [1, 1, 0.8]},
    )  # fmt: skip
    ours = df[df["source"] == "modelled"]
    methods = style.methods_in(ours)
    for ax, (varies, title) in zip(axes, PANELS.items(), strict=False):
        for method in methods:
            mine = ours[(ours["method"] == method) & (ours["varies"] == varies)].astype({"x": float}).sort_values("x")
            ax.plot(mine["x"], mine["value"], color=style.colour(method), marker=style.marker(method), ms=4,
                    label=style.label(method) if varies == "tokens" else None)  # fmt: skip
        for row in df[(df["source"] == "paper") & (df["varies"] == varies)].itertuples():
            if row.method in methods:
                aside = 1.12 if row.method == "assyllm_paper" else 1.0  # its star would lie under FwdLLM's
                star = {**style.PAPER, "label": None, "color": style.colour(row.method), "edgecolors": "black"}
                ax.scatter(aside * float(row.x), row.value, **{**star, "linewidths": 0.5})
        ax.set_xscale("log", base=2)
        points = sorted({float(x) for x in ours[ours["varies"] == varies]["x"]})
        ax.set_xticks(points, [f"{x:g}" for x in points])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(title)
    labels: list[str] = []
    heights: list[float] = []
    places: list[float] = []
    mine = ours[ours["method"] == SCORING]
    for what, unit in (("resident_blocks", "part"), ("bits", "bit")):
        for row in mine[mine["varies"] == what].itertuples():
            labels.append(f"{row.x} {unit}{'s' if unit == 'part' and int(row.x) > 1 else ''}")
            heights.append(row.value)
            places.append(len(places) + (0.5 if what == "bits" else 0))
    ax = axes[2]
    ax.bar(places, heights, color=style.colour(SCORING), width=0.65)
    ax.set_xticks(places, labels, rotation=90)
    ax.set_xlabel("AssyLLM, scoring")
    ax.set_yscale("log", base=2)
    ax.set_yticks(CLASSES, [str(c) for c in CLASSES])
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())
    for axis in axes:
        for size in CLASSES:
            axis.axhline(size, color="black", lw=0.5, ls=":")
        axis.grid(visible=False)
    axes[0].set_ylim(0.5, None)
    axes[0].set_ylabel("peak memory, GB")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    style.caption(
        figure, df, "Llama-7B, fused attention, stateless SGD; "
        f"{_other(ours, 'tokens', 'batch')} rows (left), {_other(ours, 'batch', 'tokens')} tokens (middle, right). "
        "Right: scoring alone, by parts of the pool in memory at once, and by bits a weight; the paper's rule trains "
        "adapters besides. "
        "Dotted: the fleet's memory classes. Stars: the paper at 256 tokens, its percentages taken of its own 45 GB; "
        "AssyLLM's is drawn aside of FwdLLM's.",
    )  # fmt: skip
    return figure
