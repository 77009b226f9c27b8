"""Accuracy against the algorithm-level baselines, and the curves over rounds (paper figure 15, table 4)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

SHOWN = (
    "majority", "zero_shot", "ft_practical", "ft_oracle", "lora", "qlora", "fedadapter", "fwdllm", "assyllm_paper",
    "assyllm",
)  # fmt: skip


def data(tables: Tables) -> pd.DataFrame:
    """Final accuracies with intervals, the paper's beside them, and mean test curves over rounds (percent)."""
    rows = accuracy_rows(tables)
    return rows[rows["method"].isin(SHOWN)].reset_index(drop=True)


def accuracy_rows(tables: Tables) -> pd.DataFrame:
    """The same of every method."""
    final = tables.accuracy[(tables.accuracy["split"] == "test") & (tables.accuracy["main"] == 1)]
    rows = [
        {
            "what": "final", "task": r.task, "world": r.world, "method": r.method, "round": "",
            "value": 100 * r.mean, "low": 100 * r.low, "high": 100 * r.high, "source": "measured",
        }
        for r in final.itertuples()
    ]  # fmt: skip
    for r in tables.paper_accuracy().itertuples():
        rows.append(
            {"what": "final", "task": r.task, "world": "", "method": r.method, "round": "",
             "value": float(r.value), "low": float(r.value), "high": float(r.value), "source": "paper"}
        )  # fmt: skip
    m = tables.metrics
    curves = m[(m["metric"] == "accuracy") & (m["split"] == "test") & (m["round"] != "") & (m["setting"] == "")].assign(
        round=lambda d: d["round"].astype(int)
    )
    for (task, world, method, number), group in curves.groupby(["task", "world", "method", "round"]):
        value = 100 * group["value"]
        rows.append(
            {"what": "curve", "task": task, "world": world, "method": method, "round": number,
             "value": value.mean(), "low": value.min(), "high": value.max(), "source": "measured"}
        )  # fmt: skip
    return pd.DataFrame(rows)


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """Top: bars of the final accuracy. Bottom: test accuracy over rounds, range over seeds shaded."""
    measured = df[(df["what"] == "final") & (df["source"] == "measured")]
    tasks = [task for task in style.TASKS if task in set(measured["task"])]
    methods = [method for method in style.METHODS if method in set(measured["method"])]
    figure, axes = plt.subplots(
        2, len(tasks), figsize=(look.width_inches, look.width_inches * 0.62), layout="constrained",
        squeeze=False, sharey="row",
    )  # fmt: skip
    paper = df[df["source"] == "paper"]
    for ax, below, task in zip(axes[0], axes[1], tasks, strict=True):
        for x, method in enumerate(methods):
            for row in measured[(measured["task"] == task) & (measured["method"] == method)].itertuples():
                error = np.array([[row.value - row.low], [row.high - row.value]])
                ax.bar(x, row.value, 0.7, color=style.colour(method), yerr=error, capsize=2,
                       label=style.label(method))  # fmt: skip
            for value in paper[(paper["task"] == task) & (paper["method"] == method)]["value"]:
                ax.scatter(x, value, **style.PAPER)
        ax.set_xticks([])
        world = measured[measured["task"] == task]["world"].iloc[0]
        ax.set_title(style.task_label(task, world))
        style.percent_axis(ax, 0, 105)
        curves = df[(df["what"] == "curve") & (df["task"] == task)]
        for method in methods:
            mine = curves[curves["method"] == method].sort_values("round")
            if mine.empty:
                continue
            rounds = mine["round"].astype(int)
            below.plot(rounds, mine["value"], color=style.colour(method), label=style.label(method))
            below.fill_between(rounds, mine["low"], mine["high"], color=style.colour(method), alpha=0.2, lw=0)
        below.set_xlabel("round")
        style.percent_axis(below, 0, 105)
    axes[0][0].set_ylabel("test accuracy, final")
    axes[1][0].set_ylabel("test accuracy")
    handles, names = axes[0][0].get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=3, frameon=False)
    style.caption(figure, df, "Final test accuracy (95 % interval) and its course over the federated rounds.")
    return figure
