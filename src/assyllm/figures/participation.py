"""Who can run which method: share of the clients and smallest device (paper figure 2)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

MODELS = {"llama-7b": "Llama-7B", "opt-6.7b": "OPT-6.7B"}
LEFT_OUT = (
    "majority",
    "zero_shot",
    "ft_oracle",
    "lora_all",
    "choices_only",
    "one_model_head",
)


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
    return pd.DataFrame(rows)


def _paper(method: str, model: str, value: float) -> dict:
    return {"method": method, "model": model, "value": value, "smallest_gb": "", "source": "paper"}


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """Bars of the share for both models, the smallest device written above."""
    ours = df[df["source"] == "modelled"]
    methods = [m for m in style.METHODS if m in set(ours["method"])]
    figure, ax = plt.subplots(figsize=(look.width_inches, look.width_inches * 0.42), layout="constrained")
    starred = False
    for i, model in enumerate(MODELS):
        for x, method in enumerate(methods):
            place = x + (i - 0.5) * 0.4
            for row in ours[(ours["method"] == method) & (ours["model"] == model)].itertuples():
                ax.bar(place, row.value, 0.38, color="#0072B2" if i == 0 else "#E69F00",
                       label=MODELS[model] if x == 0 else None)  # fmt: skip
                note = "none" if row.smallest_gb == "none" else f"{row.smallest_gb}"
                ax.text(place, row.value + 3.5, note, ha="center", va="bottom", fontsize=7)
            theirs = df[(df["source"] == "paper") & (df["method"] == method) & (df["model"] == model)]
            for value in theirs["value"]:
                ax.scatter(place, value, **{**style.PAPER, "label": None if starred else "paper", "s": 35})
                starred = True
    names = [style.label(m).replace(" (", "\n(").replace(" + ", "\n+ ") for m in methods]
    ax.set_xticks(range(len(methods)), names, rotation=35, ha="right", rotation_mode="anchor")
    style.percent_axis(ax, 0, 114)
    ax.set_yticks(range(0, 101, 20))
    ax.set_ylabel("clients that take part")
    ax.grid(axis="x", visible=False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    style.caption(
        figure, df, "Above each bar: the smallest memory class that runs the method, GB. Batch 16 x 256 tokens, "
        "16 bit, stateless SGD, 0.5 GB reserved. Stars: the slides' excluded clients (90 and 75 %; the paper's text "
        "says 85 and 60, which no mix of these classes gives) and section 2's QLoRA and FwdLLM; its QLoRA share needs "
        "at most 8 GB while -79 % of 45 GB is 9.5 GB.",
    )  # fmt: skip
    return figure
