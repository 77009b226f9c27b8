"""What memory-efficient fine-tuning reaches, and when, beside the oracle (paper figure 3)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.algorithm_baselines import COLUMNS, curve_rows
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("resources", "rounds", "paper")
SHOWN = ["ft_oracle", "lora", "qlora", "fedadapter", "fwdllm"]


def data(tables: Tables) -> pd.DataFrame:
    """Test accuracy (percent) over modelled hours; the paper's end points, where it gives hours.

    The paper gives the oracle's hours on BoolQ and every method's speed-up over FT-practical, so hours of all.
    """
    curves = curve_rows(tables)
    curves = curves[curves["method"].isin(SHOWN) & (curves["hours"].astype(str) != "")]
    paper = tables.paper
    oracle = paper[(paper["metric"] == "time") & (paper["method"] == "ft_oracle")]
    final = tables.paper_accuracy().set_index(["task", "method"])["value"]
    speed = paper[paper["metric"] == "speedup"].set_index(["dataset", "method"])["value"]
    marks = []
    for row in oracle.itertuples():
        whole = float(row.value) * float(speed[row.dataset, "ft_oracle"])
        for method in SHOWN:
            value = float(final[row.dataset, method])
            marks.append(
                dict.fromkeys(COLUMNS, "")
                | {"what": "end", "task": row.dataset, "method": method, "value": value, "low": value, "high": value,
                   "hours": whole / float(speed[row.dataset, method]), "source": "paper"}
            )  # fmt: skip
    found = pd.concat([curves, pd.DataFrame(marks, columns=COLUMNS)], ignore_index=True)
    return tables.with_step(found, "resources")


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """One panel a task: lines over hours, stars in the methods' colours where the paper ends."""
    curves = df[df["what"] == "curve"]
    tasks = style.tasks(curves["task"])
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(look.width_inches, look.width_inches * 0.4), layout="constrained", squeeze=False,
        sharey=True,
    )  # fmt: skip
    for ax, task in zip(axes[0], tasks, strict=True):
        mine = curves[curves["task"] == task]
        style.lines(ax, SHOWN, mine, "hours")
        for row in df[(df["what"] == "end") & (df["task"] == task)].itertuples():
            star = {**style.PAPER, "color": style.colour(row.method), "edgecolors": "black", "linewidths": 0.6}
            ax.scatter(float(row.hours), row.value, **{**star, "label": None})
        style.log_axis(ax)
        ax.set_xlabel("hours on a device (modelled)")
        ax.set_title(style.task_label(task, mine["world"].iloc[0]))
    style.percent_axis(axes[0][0], 30, 90)
    axes[0][0].set_ylabel("test accuracy")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(SHOWN), frameon=False)
    style.caption(
        figure, df, "Accuracy measured with the clients whose memory suffices (the oracle: all), mean and range over "
        f"seeds, over rounds x a round modelled at Llama-7B on a {style.told(df, 'device')}'s speed. Stars: where the "
        "paper's methods end on the real BoolQ (its oracle's 8.73 h and its speed-ups); it gives no hours for the "
        "other tasks.",
    )  # fmt: skip
    return figure
