"""Accuracy against how unequal the clients' data are, and what is lost (paper figure 17)."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("non_iid",)
IID = 1000.0


def data(tables: Tables) -> pd.DataFrame:
    """Test accuracy in percent, and points lost from the most equal clients, by method, task and alpha."""
    rows = []
    for r in tables.non_iid.itertuples():
        if r.task == "all" or r.changed != "":
            continue
        common = {"task": r.task, "world": r.world, "method": r.method, "alpha": r.alpha}
        found = {"accuracy": (r.mean, r.low, r.high), "lost": (r.drop, r.drop_low, r.drop_high)}
        for kind, values in found.items():
            if values[0] != "":
                value, low, high = (100 * float(v) for v in values)
                rows.append(
                    common
                    | {"kind": kind, "value": value, "low": low, "high": high, "runs": r.runs, "source": r.source}
                )
    df = pd.DataFrame(rows)
    return df.sort_values(["task", "kind", "method", "alpha"], ignore_index=True) if rows else df


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """A column a task: a line a method, from unequal to equal clients (right); below, what is lost from there."""
    tasks = style.tasks(df["task"])
    methods = style.methods_in(df)
    figure, axes = plt.subplots(
        2, len(tasks), figsize=(look.width_inches, 4.6), layout="constrained", sharey="row", squeeze=False,
        height_ratios=[3, 2],
    )  # fmt: skip
    accuracy, lost = (df[df["kind"] == kind] for kind in ("accuracy", "lost"))
    alphas = sorted(set(accuracy["alpha"]))
    for column, task in zip(axes.T, tasks, strict=True):
        _lines(column[0], accuracy[accuracy["task"] == task], methods, alphas)
        _losses(column[1], lost[(lost["task"] == task) & (lost["alpha"] == alphas[0])], methods)
        column[0].set_title(style.task_label(task, df[df["task"] == task]["world"].iloc[0]))
    style.percent_axis(axes[0][0], style.tens_below(accuracy["low"]))
    axes[0][0].set_ylabel("test accuracy")
    axes[1][0].set_ylabel(f"points lost,\nIID to alpha {alphas[0]:g}")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    text = (
        "Clients' shares of every label drawn from a Dirichlet distribution; who is left with nothing takes an item of "
        f"the fullest (at alpha .1 a tenth to a fifth of all items); IID: alpha {alphas[-1]:g}."
    )
    style.caption(figure, df, f"{text} {style.interval(df)}")
    return figure


def _lines(ax: Axes, df: pd.DataFrame, methods: list[str], alphas: list[float]) -> None:
    for i, method in enumerate(methods):
        mine = df[df["method"] == method]
        x = [alphas.index(alpha) + 0.05 * (i - len(methods) / 2) for alpha in mine["alpha"]]
        _points(ax, x, mine, method, lw=1.1, label=style.label(method))
    ax.set_xticks(range(len(alphas)), ["IID" if alpha >= IID else f"{alpha:g}" for alpha in alphas])
    ax.set_xlabel("Dirichlet alpha")


def _losses(ax: Axes, df: pd.DataFrame, methods: list[str]) -> None:
    ax.axhline(0, color="black", lw=0.8)
    for i, method in enumerate(methods):
        _points(ax, [i], df[df["method"] == method], method, ls="")
    ax.set_xticks([])
    ax.set_xlim(-0.6, len(methods) - 0.4)


def _points(ax: Axes, x: list[float], mine: pd.DataFrame, method: str, **look: Any) -> None:
    error = style.error(mine["value"], mine["low"], mine["high"])
    ax.errorbar(
        x[: len(mine)], mine["value"], yerr=error, color=style.colour(method), marker=style.marker(method), ms=3.5,
        elinewidth=0.6, **look,
    )  # fmt: skip
