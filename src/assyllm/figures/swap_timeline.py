"""The swapper's pipelines as Gantt charts, from its own trace (paper figure 12)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("swap_timeline",)
PIPELINES = {
    "default": "default swapping",
    "preload": "pre-loading",
    "preload_preswap": "pre-loading and pre-swapping",
    "plan_driven": "both, eviction by the plan (ours)",
}
LANES = {"load": ("read", "#0072B2", 2), "wait": ("wait", "#D55E00", 1), "compute": ("compute", "#009E73", 0)}


def data(tables: Tables) -> pd.DataFrame:
    """Events (seconds) of every pipeline up to the end of the default pipeline's first pass."""
    events = tables.swap_timeline
    first = events[(events["pipeline"] == "default") & (events["unit"] == "after") & (events["kind"] == "compute")]
    return events[events["start"] < first["end"].min()].reset_index(drop=True)


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """One panel a pipeline; lanes for reading, waiting and computing, the layer's number in each bar."""
    end = df[df["pipeline"] == "default"]["end"].max()
    figure, axes = plt.subplots(
        len(PIPELINES), 1, figsize=(look.width_inches, look.width_inches * 0.62), layout="constrained", sharex=True
    )
    for ax, (name, label) in zip(axes, PIPELINES.items(), strict=True):
        mine = df[df["pipeline"] == name]
        for kind, (_, colour, lane) in LANES.items():
            for row in mine[mine["kind"] == kind].itertuples():
                width = min(row.end, end) - row.start
                ax.barh(lane, width, left=row.start, height=0.8, color=colour, edgecolor="white", lw=0.3)
                if kind != "wait" and width > 0.02 * end:
                    middle = row.start + width / 2
                    ax.text(middle, lane, row.unit, ha="center", va="center", color="white", fontsize=7)
        ax.set_yticks([lane for *_, lane in LANES.values()], [text for text, *_ in LANES.values()])
        ax.set_title(label, loc="left")
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, end)
    axes[-1].set_xlabel("seconds")
    handles = [Patch(color=colour, label=text) for text, colour, _ in LANES.values()]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False)
    text = (
        "Layers of a model under a budget of a quarter of its bytes, computing as long as the throttled storage reads; "
        "in the time that default swapping takes for one pass. Numbers: layers. Wall times of one run."
    )
    style.caption(figure, df, text, scale="random weights, small")
    return figure
