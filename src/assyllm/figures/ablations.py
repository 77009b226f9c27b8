"""One thing changed at a time: what each setting of `study.ablations` does to the two assembling methods."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("ablations",)
SHOWN = ("assyllm", "assyllm_paper")  # the methods that are taken apart; others only where clients differ
MARK = 1e-9


def data(tables: Tables) -> pd.DataFrame:
    """Difference to the method's base setting in points, with its interval, by setting and task."""
    a = tables.ablations
    a = a[a["method"].isin(SHOWN) & (a["difference"] != "")]
    columns = {name: 100 * a[name].astype(float) for name in ("difference", "difference_low", "difference_high")}
    return a.assign(**columns)[
        ["method", "setting", "changed", "task", "world", *columns, "runs", "source"]
    ].reset_index(drop=True)


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """A row a setting, a panel a task; right of the line is better than base. Full marks: interval clear of 0."""
    tasks = style.tasks(df["task"])
    methods = style.methods_in(df, SHOWN)
    order = [(m, s) for m in methods for s in dict.fromkeys(df[df["method"] == m]["setting"])]
    places = {key: -(i + 1.6 * methods.index(key[0])) for i, key in enumerate(order)}
    figure, axes = plt.subplots(
        1, len(tasks), sharey=True, squeeze=False, layout="constrained",
        figsize=(look.width_inches, 0.155 * len(order) + 1.2),
    )  # fmt: skip
    for ax, task in zip(axes[0], tasks, strict=True):
        ax.axvline(0, color="black", lw=0.6)
        for row in df[df["task"] == task].itertuples():
            y = places[row.method, row.setting]
            clear = row.difference_low > MARK or row.difference_high < -MARK
            ax.errorbar(
                row.difference, y, xerr=style.error(row.difference, row.difference_low, row.difference_high),
                fmt="o", ms=3.5, lw=0.9, color=style.colour(row.method),
                mfc=style.colour(row.method) if clear else "white",
            )  # fmt: skip
        ax.set_title(style.task_label(task, df[df["task"] == task]["world"].iloc[0]))
        ax.set_xlabel("points against base")
        ax.set_xscale("symlog", linthresh=10)
        ax.set_xticks([-60, -10, -5, 0, 5, 10], ["-60", "-10", "-5", "0", "5", "10"])
        ax.minorticks_off()
        for method in methods:
            top = max(y for (m, _), y in places.items() if m == method)
            ax.axhline(top + 1.25, color="#BBBBBB", lw=0.5)
    ticks, names = list(places.values()), [setting for _, setting in places]
    for method in methods:
        ticks.append(max(y for (m, _), y in places.items() if m == method) + 0.95)
        names.append(style.label(method))
    axes[0][0].set_yticks(ticks, names)
    for tick in axes[0][0].get_yticklabels()[-len(methods) :]:
        tick.set_fontweight("bold")
    axes[0][0].set_ylim(min(ticks) - 0.8, max(ticks) + 0.7)
    style.caption(
        figure, df, "Test accuracy less the base setting's, paired by question and run; settings as in params.yaml. "
        f"{style.interval(df)} Full marks: it excludes 0. Scale linear to 10 points, logarithmic beyond.",
    )  # fmt: skip
    return figure
