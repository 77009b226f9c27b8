"""Accuracy against how unequal the clients' data are (paper figure 17)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("ablations", "runs")
KEY = "partition.alpha="
IID = 1000.0


def data(tables: Tables) -> pd.DataFrame:
    """Test accuracy in percent with its interval by method, task and alpha."""
    a = tables.ablations
    swept = set(a[a["changed"].str.startswith(KEY)]["method"])
    base = tables.runs[tables.runs["setting"] == ""]["alpha"]
    rows = []
    for r in a[a["method"].isin(swept)].itertuples():
        if r.setting != "base" and not r.changed.startswith(KEY):
            continue
        alpha = float(r.changed.removeprefix(KEY)) if r.setting != "base" else float(base.iloc[0])
        rows.append(
            {
                "task": r.task, "world": r.world, "method": r.method, "alpha": alpha, "value": 100 * r.mean,
                "low": 100 * r.low, "high": 100 * r.high, "runs": r.runs, "source": r.source,
            }
        )  # fmt: skip
    return pd.DataFrame(rows).sort_values(["task", "method", "alpha"], ignore_index=True)


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """A panel a task, a line a method, from unequal (left) to equal clients (right)."""
    tasks = style.tasks(df["task"])
    alphas = sorted(set(df["alpha"]))
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(look.width_inches, 3.0), layout="constrained", sharey=True, squeeze=False
    )
    methods = [method for method in style.METHODS if method in set(df["method"])]
    for ax, task in zip(axes[0], tasks, strict=True):
        for i, method in enumerate(methods):
            mine = df[(df["task"] == task) & (df["method"] == method)]
            x = [alphas.index(alpha) + 0.05 * (i - len(methods) / 2) for alpha in mine["alpha"]]
            error = np.array([mine["value"] - mine["low"], mine["high"] - mine["value"]])
            ax.errorbar(
                x, mine["value"], yerr=error, color=style.colour(method), marker=style.METHODS[method][2], ms=3.5,
                lw=1.1, elinewidth=0.6, label=style.label(method),
            )  # fmt: skip
        ax.set_xticks(range(len(alphas)), ["IID" if alpha >= IID else f"{alpha:g}" for alpha in alphas])
        ax.set_xlabel("Dirichlet alpha")
        ax.set_title(style.task_label(task, df[df["task"] == task]["world"].iloc[0]))
    low = 10 * np.floor(df["low"].min() / 10)
    style.percent_axis(axes[0][0], low, 100)
    axes[0][0].set_ylabel("test accuracy")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    text = (
        "Clients' shares of every label drawn from a Dirichlet distribution; who is left with nothing takes an item of "
        "the fullest (at alpha .1 a tenth to a fifth of all items); IID: alpha 1000."
    )
    style.caption(figure, df, f"{text} {style.interval(df)}")
    return figure
