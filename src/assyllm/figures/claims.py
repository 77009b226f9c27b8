"""The paper's headline claims beside ours, as a table."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

# column -> characters in a line, heading
COLUMNS = {
    "claim": (36, "claim"),
    "paper_value": (7, "paper"),
    "our_value": (7, "ours"),
    "unit": (8, "unit"),
    "source": (9, "source"),
    "verdict": (15, "verdict"),
    "why": (40, "on what, and why they differ"),
}
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
    cells = [
        ["\n".join(textwrap.wrap(_cell(row[c]), width)) for c, (width, _) in COLUMNS.items()]
        for _, row in df.iterrows()
    ]
    lines = [max(cell.count("\n") + 1 for cell in row) for row in cells]
    heights = [1.6, *[n + 0.6 for n in lines]]
    figure, ax = plt.subplots(figsize=(look.width_inches * 1.3, 0.125 * sum(heights)), layout="constrained")
    ax.axis("off")
    total = sum(width for width, _ in COLUMNS.values()) + 2 * len(COLUMNS)
    table = ax.table(
        cellText=cells,
        colLabels=[heading for _, heading in COLUMNS.values()],
        colWidths=[(width + 2) / total for width, _ in COLUMNS.values()],
        cellLoc="left",
        bbox=Bbox.from_bounds(0, 0, 1, 1),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    verdict_column = list(COLUMNS).index("verdict")
    for (i, j), cell in table.get_celld().items():
        cell.set_height(heights[i] / sum(heights))
        cell.set_linewidth(0.4)
        cell.PAD = 0.04
        if i == 0:
            cell.set_text_props(weight="bold")
        elif j == verdict_column:
            cell.set_facecolor(COLOURS[df["verdict"].iloc[i - 1]])
    style.caption(
        figure, df, "Headline claims of the paper, judged for the method as the paper describes it, then for ours."
    )
    return figure


def _cell(value: object) -> str:
    """Numbers with three digits; they come as text where a column also has empty cells."""
    try:
        return f"{float(value):.3g}"  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return str(value)
