"""The paper's headline claims beside ours, as a table."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from assyllm.claims.shown import all_claims
from assyllm.claims.table import COLUMNS as CLAIMS
from assyllm.claims.table import METHODS, number
from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("claims", "swap_ablation", "paper")
# heading -> characters in a line
COLUMNS = {
    "claim": 46.5, "paper": 7, "unit": 8, "the paper's method": 20, "assyllm (ours)": 19, "source": 9.5,
}  # fmt: skip
COLOURS = {
    "reproduced": "#A6DBC0",
    "reproduced in direction": "#FFF3C9",
    "not reproduced": "#F3B79B",
    "not yet measured": "#FFFFFF",
}
SHORT = {"reproduced in direction": "in direction", "not reproduced": "not", "not yet measured": "not run"}


def data(tables: Tables) -> pd.DataFrame:
    """The claims as collected, with the swapper's, which are wall times."""
    return pd.DataFrame(all_claims(tables.folder), columns=list(CLAIMS))


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """One row a claim: the paper's value, then ours with the verdict, in colour and words, by method."""
    rows, colours = [], []
    for claim, group in df.groupby("claim", sort=False):
        by_method = {("assyllm" if r.method == METHODS[1] else "paper"): r for r in group.itertuples()}
        first = group.iloc[0]
        sources = [s for s in dict.fromkeys(group["source"]) if s]
        rows.append(
            [textwrap.shorten(claim, 64), number(first["paper_value"]), first["unit"],
             *(_judged(by_method.get(who)) for who in ("paper", "assyllm")), ", ".join(sources)]
        )  # fmt: skip
        colours.append([COLOURS[by_method[w].verdict] if w in by_method else "white" for w in ("paper", "assyllm")])
    figure, ax = plt.subplots(figsize=(look.width_inches, 0.165 * (len(rows) + 1)), layout="constrained")
    ax.axis("off")
    total = sum(COLUMNS.values())
    table = ax.table(
        cellText=rows, colLabels=list(COLUMNS), colWidths=[width / total for width in COLUMNS.values()],
        cellLoc="left", bbox=Bbox.from_bounds(0, 0, 1, 1),
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    judged = list(COLUMNS).index("the paper's method")
    for (i, j), cell in table.get_celld().items():
        cell.set_linewidth(0.3)
        cell.PAD = 0.03
        if i == 0:
            cell.set_text_props(weight="bold")
        elif j in (judged, judged + 1):
            cell.set_facecolor(colours[i - 1][j - judged])
    style.caption(
        figure, df, "Headline claims of the paper: the paper's value, and ours with a verdict, for the method (or "
        "baseline, or component) as the paper describes it and for ours. Reproduced: within a quarter of the paper's "
        "value or beyond it (shares and counts: within a quarter; sizes: 5 %), its interval beyond no effect; what is "
        "lost at most: it and its interval at most a quarter above. In direction: of the same sign, its interval "
        "beyond no effect; lost at most: it alone is that low. Modelled ones are of true shapes, the swapper's times "
        "of random weights; reasons, scales and commands are in claims.csv.",
    )  # fmt: skip
    return figure


def _judged(row: object) -> str:
    if row is None:
        return ""
    verdict = str(SHORT.get(row.verdict, row.verdict))  # type: ignore[attr-defined]
    value = number(row.our_value)  # type: ignore[attr-defined]
    return f"{value}  {verdict}" if value else verdict
