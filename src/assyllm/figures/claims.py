"""The paper's headline claims beside ours, as a table."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

COLOURS = {
    "reproduced": "#CDE8DC",
    "reproduced in direction": "#FFF3C9",
    "not reproduced": "#F8D5C2",
    "not yet measured": "#EEEEEE",
}


def data(tables: Tables) -> pd.DataFrame:
    """The claims table as collected."""
    return tables.claims


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """One row a claim: the paper's value, ours, where it comes from, the verdict in colour, and why."""
    columns = {
        "claim": 34,
        "paper_value": 9,
        "our_value": 9,
        "unit": 8,
        "source": 9,
        "verdict": 14,
        "why": 46,
    }
    cells = [
        ["\n".join(textwrap.wrap(_cell(row[c]), width)) for c, width in columns.items()]
        for _, row in df.iterrows()
    ]
    lines = [max(cell.count("\n") + 1 for cell in row) for row in cells]
    figure, ax = plt.subplots(figsize=(look.width_inches * 1.35, 0.16 * sum(lines) + 0.12 * len(cells) + 0.5))
    ax.axis("off")
    total = sum(columns.values())
    table = ax.table(
        cellText=cells,
        colLabels=["claim", "paper", "ours", "unit", "source", "verdict", "why they differ"],
        colWidths=[width / total for width in columns.values()],
        cellLoc="left",
        bbox=[0, 0, 1, 1],
    )
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    heights = [1.4, *[n + 0.6 for n in lines]]
    for (i, j), cell in table.get_celld().items():
        cell.set_height(heights[i] / sum(heights))
        cell.set_linewidth(0.4)
        cell.PAD = 0.03
        if i == 0:
            cell.set_text_props(weight="bold")
        elif j == 5:
            cell.set_facecolor(COLOURS.get(df["verdict"].iloc[i - 1], "white"))
    style.caption(
        figure, df, "Headline claims of the paper, judged for the method as the paper describes it."
    )
    return figure


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
