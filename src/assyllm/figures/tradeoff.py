"""Accuracy against a client's energy: what a further cohort asked which blocks to take buys, beside the baselines."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("tradeoff", "resources")
SURVEYED = re.compile(r"assembling\.\w+\.selection\.survey_rounds=(\d+|null)")
LEFT_OUT = ("choices_only",)  # reads no question
COLUMNS = [
    "task",
    "world",
    "method",
    "way",
    "cohorts",
    "energy",
    "value",
    "low",
    "high",
    "runs",
    "source",
    "energy_source",
]


def data(tables: Tables) -> pd.DataFrame:
    """Per task, method and way of selecting: test accuracy (percent) and energy over FT-oracle's (percent).

    ``way`` is "" (base), "surveyed" (only ``survey_rounds`` differs, to ``cohorts``) or "other". Accuracy is measured,
    energy modelled.
    """
    rows = []
    for key, found in tables.tradeoff.groupby(["setting", "method", "task", "world"], sort=False):
        setting, method, task, world = key
        if method in LEFT_OUT:
            continue
        what = found.set_index("what")
        told = SURVEYED.fullmatch(str(setting))
        rows.append({
            "task": task, "world": world, "method": method, "way": "surveyed" if told else "other" if setting else "",
            "cohorts": told.group(1).replace("null", "all") if told else "",
            "energy": 100 * float(what.at["energy_of_full", "value"]),
            **{name: 100 * float(what.at["accuracy", name]) for name in ("value", "low", "high")},
            "runs": int(what.at["accuracy", "runs"]), "source": "measured", "energy_source": "modelled",
        })  # fmt: skip
    df = pd.DataFrame(rows, columns=COLUMNS).sort_values(["task", "method", "way", "energy"], ignore_index=True)
    return tables.with_step(df, "resources")


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """A panel a task; ours as a line over cohorts surveyed, its other settings small and hollow."""
    tasks = style.tasks(df["task"])
    figure, axes = plt.subplots(
        1, len(tasks), sharey=True, squeeze=False, layout="constrained", figsize=(look.width_inches, 2.7)
    )
    for ax, task in zip(axes[0], tasks, strict=True):
        _panel(ax, df[df["task"] == task])
        ax.set_title(style.task_label(task, df[df["task"] == task]["world"].iloc[0]))
        ax.set_xlabel("energy, % of FT-oracle's")
    axes[0][0].set_ylabel("test accuracy")
    style.percent_axis(axes[0][0], style.tens_below(df["low"]))
    methods = style.methods_in(df)
    handles = [
        Line2D([], [], color=style.colour(m), marker=style.marker(m), ls="", ms=4, label=style.label(m))
        for m in methods
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    numbered = "Numbers: cohorts surveyed; without one: the default. " if (df["way"] == "surveyed").any() else ""
    other = "Small and hollow: other ways of selecting blocks. "
    hollow = other if (df["way"] == "other").any() else ""
    style.caption(
        figure, df,
        f"Accuracy is measured at tiny scale; energy is of one client's place in the cohort {style.UNTIL}, over "
        f"FT-oracle's on the same task. {style.steps(df)} "
        + numbered + hollow + style.interval(df),
    )  # fmt: skip
    return figure


def _panel(ax: Axes, df: pd.DataFrame) -> None:
    style.log_axis(ax)
    ax.axvline(100, color="0.6", lw=0.8, ls=":")
    for method in style.methods_in(df):
        mine = df[df["method"] == method]
        swept = mine[mine["way"] == "surveyed"]
        line = mine[mine["way"] != "other"].sort_values("energy") if len(swept) else mine[mine["way"] == ""]
        ax.errorbar(
            line["energy"], line["value"], yerr=style.error(line["value"], line["low"], line["high"]),
            color=style.colour(method), marker=style.marker(method), ls="-" if len(swept) else "", ms=4, lw=1,
            elinewidth=0.7, capsize=1.5, clip_on=False,
        )  # fmt: skip
        for place, row in enumerate(swept.itertuples()):  # so that they meet neither one another nor other ways' marks
            ax.annotate(
                row.cohorts, (row.energy, row.high if place else row.low), (0, 2 if place else -8),
                textcoords="offset points", ha=("center", "right", "left")[min(place, 2)], fontsize=7,
                color=style.colour(method), annotation_clip=False,
            )  # fmt: skip
        other = mine[mine["way"] == "other"]
        ax.plot(other["energy"], other["value"], color=style.colour(method), marker=style.marker(method), ls="", ms=2.5,
                mfc="white", mew=0.7)  # fmt: skip
