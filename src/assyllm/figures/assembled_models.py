"""Every model that the search assembled: accuracy, size, number of blocks (paper figure 14)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures, is_base

READS = ("accuracy", "models")
SHOWN = ("assyllm_paper", "assyllm")  # controls have a figure of their own
MARKERS = {2: "v", 3: "o", 4: "s", 5: "D", 6: "P", 7: "X", 8: "h"}


def data(tables: Tables) -> pd.DataFrame:
    """One row per assembled model of the base setting (accuracy in percent, size in MB = 10^6 bytes)."""
    models = tables.models
    if len(models):
        models = models[models["setting"].map(is_base) & models["method"].isin(SHOWN)]
    if not len(models):  # a study without a method that searches
        return pd.DataFrame()
    models = models.assign(
        accuracy=100 * models["accuracy_test"].astype(float), size_mb=models["size_bytes"].astype(float) / 1e6
    )
    columns = ["world", "task", "method", "run_id", "seed", "model", "blocks", "n_blocks", "families", "size_mb",
               "compatibility", "accuracy", "reported", "source"]  # fmt: skip
    final = tables.accuracy[
        (tables.accuracy["split"] == "test")
        & (tables.accuracy["main"] == 1)
        & tables.accuracy["method"].isin(["ft_oracle", "ft_practical"])
    ]
    lines = pd.DataFrame(
        [
            {**dict.fromkeys(columns, ""), "world": r.world, "task": r.task, "method": r.method,
             "accuracy": 100 * r.mean, "source": "measured"}
            for r in final.itertuples()
        ],
        columns=columns,
    )  # fmt: skip
    return pd.concat([models[columns], lines], ignore_index=True)


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """One panel a task: size against accuracy, shape by number of blocks, the reported model ringed."""
    models = df[df["model"] != ""]
    tasks = style.tasks(models["task"])
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(look.width_inches, look.width_inches * 0.42), layout="constrained",
        squeeze=False, sharey=True,
    )  # fmt: skip
    for ax, task in zip(axes[0], tasks, strict=True):
        mine = models[models["task"] == task]
        for (method, n_blocks), group in sorted(mine.groupby(["method", "n_blocks"])):
            ax.scatter(group["size_mb"].astype(float), group["accuracy"], s=24, alpha=0.75,
                       marker=MARKERS.get(int(n_blocks), "."), color=style.colour(method), edgecolor="white",
                       lw=0.3)  # fmt: skip
        best = mine[mine["reported"].astype(int) == 1]
        ax.scatter(best["size_mb"].astype(float), best["accuracy"], s=90, facecolor="none", edgecolor="black",
                   lw=1.2, label="reported model, one a run")  # fmt: skip
        for row in df[(df["model"] == "") & (df["task"] == task)].itertuples():
            ax.axhline(row.accuracy, color=style.colour(row.method), ls="--", lw=1, label=style.label(row.method))
        ax.set_title(style.task_label(task, mine["world"].iloc[0]))
        ax.set_xlabel("size, MB")
        style.percent_axis(ax)
    axes[0][0].set_ylabel("test accuracy")
    handles, names = axes[0][0].get_legend_handles_labels()
    for method in SHOWN:
        handles.append(Line2D([], [], ls="", marker="o", color=style.colour(method)))
        names.append(style.label(method))
    for n_blocks in sorted(set(models["n_blocks"].astype(int))):
        handles.append(Line2D([], [], ls="", marker=MARKERS.get(n_blocks, "."), color="#444444", ms=5))
        names.append(f"{n_blocks} blocks")
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False)
    counts = models[models["method"] == SHOWN[0]].groupby(["task", "run_id"]).size()
    text = "All models assembled by the search"
    if len(counts):
        text += f"; of the paper's rule {counts.min()} to {counts.max()} a run and task (the paper: 21)"
    text += ". The paper's rule trains the joins of the model that it reports; models that begin alike share them."
    style.caption(figure, df, text)
    return figure
