"""Who can run which method: share of the clients and smallest device (paper figure 2)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.cost.same_step import UNBOUNDED
from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import CONTROLS, HEADS, NO_DEVICE, Figures

READS = ("cost", "paper")
MODELS = ("llama-7b", "opt-6.7b")
LEFT_OUT = (*NO_DEVICE, "zero_shot", *HEADS, *CONTROLS, *UNBOUNDED)  # train nothing, score as AssyLLM, or have no limit


def data(tables: Tables) -> pd.DataFrame:
    """One row per method and model: participating share (percent), smallest memory class, the paper's share."""
    rows = []
    for (method, model), group in tables.cost.groupby(["method", "stands_for"], sort=False):
        if model not in MODELS or method in LEFT_OUT:
            continue
        classes = group.drop_duplicates("memory_gb")
        inside = classes[classes["participates"] == 1]
        rows.append(
            {
                "method": method, "model": model, "value": 100 * inside["share"].sum(),
                "smallest_gb": inside["memory_gb"].min() if len(inside) else "none", "source": "modelled",
            }
        )  # fmt: skip
    for row in tables.paper.itertuples():
        if row.metric == "participation":
            rows.append(_paper(row.method, "llama-7b", float(row.value)))
        if row.metric.startswith("excluded_clients_"):
            model = {"llama": "llama-7b", "opt": "opt-6.7b"}[row.metric.removeprefix("excluded_clients_")]
            rows.append(_paper("ft_practical", model, 100 - float(row.value)))
    return tables.with_step(pd.DataFrame(rows))


def _paper(method: str, model: str, value: float) -> dict:
    return {"method": method, "model": model, "value": value, "smallest_gb": "", "source": "paper"}


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """A panel a model: bars of the share, the smallest device written at their end."""
    ours = df[df["source"] == "modelled"]
    methods = style.methods_in(ours)
    figure, axes = plt.subplots(
        1, len(MODELS), figsize=(look.width_inches, 0.2 * len(methods) + 0.9), layout="constrained", sharey=True
    )
    for ax, model in zip(axes, MODELS, strict=True):
        mine = df[df["model"] == model].assign(low=lambda d: d["value"], high=lambda d: d["value"])
        style.bars(ax, methods, mine)
        for row in mine[mine["source"] == "modelled"].itertuples():
            note = "no device" if row.smallest_gb == "none" else f"{row.smallest_gb} GB"
            ax.text(row.value + 5, methods.index(row.method), note, ha="left", va="center", fontsize=7)
        style.method_axis(ax, methods)
        style.percent_axis(ax, 0, 122, along="x")
        ax.set_xticks(range(0, 101, 25))
        ax.set_xlabel("clients that take part")
        ax.set_title(style.model_label(model))
    style.caption(
        figure, df, "At each bar's end: the smallest memory class that runs the method, beside what the system "
        f"reserves; {style.batch(df)}. Stars: the slides' excluded clients (90 and 75 %; "
        "the paper's text says 85 and 60, which no mix of these classes gives) and section 2's QLoRA and FwdLLM; its "
        "QLoRA share needs at most 8 GB while -79 % of 45 GB is 9.5 GB. AssyLLM's controls score as it does.",
    )  # fmt: skip
    return figure
