"""The memory wall: what excluding clients by memory costs (paper figure 1)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("accuracy", "cost", "paper")
TASKS = ("boolq", "openbookqa")
MODELS = {"llama": "llama-7b", "opt": "opt-6.7b"}  # member -> shape
SETTINGS = {"llama": "", "opt": 'baselines.model="opt"'}


def data(tables: Tables) -> pd.DataFrame:
    """Accuracy (percent) of oracle and practical fine-tuning per model and task; excluded clients (percent)."""
    rows = []
    accuracy = tables.accuracy[tables.accuracy["split"] == "test"]
    paper = tables.paper_accuracy()
    for model, setting in SETTINGS.items():
        for task in TASKS:
            for method in ("ft_oracle", "ft_practical"):
                mask = (accuracy["setting"] == setting) & (accuracy["task"] == task)
                for row in accuracy[mask & (accuracy["method"] == method)].itertuples():
                    rows.append(
                        {
                            "what": "accuracy", "model": model, "task": task, "method": method,
                            "world": row.world, "value": 100 * row.mean, "low": 100 * row.low,
                            "high": 100 * row.high, "source": "measured",
                        }
                    )  # fmt: skip
                known = paper[(paper["task"] == task) & (paper["method"] == method)]
                if model == "llama":
                    for value in known["value"]:
                        rows.append(_paper("accuracy", model, task, method, float(value)))
    cost = tables.cost[tables.cost["method"] == "ft_practical"]
    excluded = tables.paper.set_index("metric")["value"]
    for model in MODELS:
        mine = cost[cost["model"] == model]
        share = 100 * float((mine["share"] * (1 - mine["participates"])).sum())
        if len(mine):
            rows.append(
                {"what": "excluded", "model": model, "task": "", "method": "ft_practical", "world": "",
                 "value": share, "low": share, "high": share, "source": "modelled"}
            )  # fmt: skip
        rows.append(_paper("excluded", model, "", "ft_practical", float(excluded[f"excluded_clients_{model}"])))
    return pd.DataFrame(rows)


def _paper(what: str, model: str, task: str, method: str, value: float) -> dict:
    return {
        "what": what, "model": model, "task": task, "method": method, "world": "",
        "value": value, "low": value, "high": value, "source": "paper",
    }  # fmt: skip


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """Left: clients excluded. Then one panel a task: oracle beside practical for both models."""
    worlds = [w for w in df["world"].unique() if w]
    figure, axes = plt.subplots(
        1, 3, figsize=(look.width_inches, look.width_inches * 0.38), layout="constrained",
        gridspec_kw={"width_ratios": [0.7, 1, 1]},
    )  # fmt: skip
    ax = axes[0]
    for i, model in enumerate(MODELS):
        mine = df[(df["what"] == "excluded") & (df["model"] == model)].set_index("source")["value"]
        ax.bar(i, mine.get("modelled", 0.0), color="#999999", width=0.6)
        ax.scatter(i, mine["paper"], **style.PAPER)
    ax.set_xticks(range(len(MODELS)), [style.model_label(shape) for shape in MODELS.values()])
    ax.set_title("clients excluded")
    style.percent_axis(ax)
    for ax, task in zip(axes[1:], TASKS, strict=True):
        for j, method in enumerate(("ft_oracle", "ft_practical")):
            for i, model in enumerate(MODELS):
                mine = df[(df["task"] == task) & (df["method"] == method) & (df["model"] == model)]
                x = i + (j - 0.5) * 0.36
                for row in mine[mine["source"] == "measured"].itertuples():
                    error = style.error(row.value, row.low, row.high)
                    ax.bar(x, row.value, 0.32, color=style.colour(method), yerr=error, capsize=2,
                           label=style.label(method) if i == 0 else None)  # fmt: skip
                for value in mine[mine["source"] == "paper"]["value"]:
                    ax.scatter(x, value, **{**style.PAPER, "label": style.PAPER["label"] if j == 0 else None})
        ax.set_xticks(range(len(MODELS)), [style.model_label(model) for model in MODELS])
        ax.set_title(style.task_label(task, worlds[0] if worlds else "real"))
        style.percent_axis(ax)
    axes[1].set_ylabel("test accuracy")
    handles, names = axes[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    text = "Fine-tuning with every client (oracle) and with those whose memory suffices (practical)."
    style.caption(figure, df, text + " Bars: mean over seeds, 95 % interval. Memory modelled at true 7B shapes.")
    return figure
