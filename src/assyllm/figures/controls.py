"""What the parts of assyllm are worth: controls and strong competitors, on facts seen in training and on others."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("accuracy",)
SHOWN = (
    "majority", "server_head", "untrained_blocks", "one_model_head", "one_model_blocks", "lora_all", "ft_oracle",
    "random_blocks", "assyllm", "all_models_head",
)  # fmt: skip
SPLITS = {"test_seen": "facts in the clients' training data", "test_unseen": "facts in nobody's"}


def data(tables: Tables) -> pd.DataFrame:
    """Test accuracy with its interval by method and kind of fact; of all questions where a task has no facts."""
    a = tables.accuracy[(tables.accuracy["main"] == 1) & tables.accuracy["method"].isin(SHOWN)]
    splits = [split for split in SPLITS if split in set(a["split"])] or ["test"]
    rows = [
        {
            "task": r.task, "world": r.world, "method": r.method, "split": r.split,
            "value": 100 * r.mean, "low": 100 * r.low, "high": 100 * r.high, "runs": r.runs,
            "source": "measured",
        }
        for r in a[a["split"].isin(splits)].itertuples()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """One panel a task: a pair of bars a method, seen facts full, unseen ones hatched."""
    tasks = style.tasks(df["task"])
    methods = style.methods_in(df, SHOWN)
    splits = [split for split in (*SPLITS, "test") if split in set(df["split"])]
    figure, axes = plt.subplots(
        len(tasks),
        1,
        figsize=(look.width_inches, 1.35 * len(tasks) + 0.9),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for ax, task in zip(axes[:, 0], tasks, strict=True):
        for x, method in enumerate(methods):
            for i, split in enumerate(splits):
                mine = df[(df["task"] == task) & (df["method"] == method) & (df["split"] == split)]
                for row in mine.itertuples():
                    ax.bar(
                        x + 0.4 * (i - (len(splits) - 1) / 2), row.value, 0.38,
                        yerr=style.error(row.value, row.low, row.high), capsize=2, color=style.colour(method),
                        hatch="///" if split == "test_unseen" else "", edgecolor="white", lw=0.3,
                    )  # fmt: skip
        style.percent_axis(ax)
        ax.set_title(style.task_label(task, df[df["task"] == task]["world"].iloc[0]))
        ax.set_ylabel("test accuracy")
    axes[-1][0].set_xticks(
        range(len(methods)), [textwrap.fill(style.label(m), 8, break_long_words=False) for m in methods]
    )
    text = "Controls and competitors. "
    if "test_unseen" in splits:
        text += "Full bars: questions whose facts are in the clients' training data; hatched: in nobody's. "
    style.caption(figure, df, f"{text}{style.interval(df)}")
    return figure
