"""Recomputation and swapping: time of a step as the memory budget falls, and their accuracy (paper figure 6)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("accuracy", "cost", "paper")
BUDGETS = (64, 32, 16, 8, 4)
METHODS = ("recomputation", "swapping")
SHOWN = ("ft_oracle", "ft_practical", "recomputation", "swapping")
TASK = "boolq"


def budget_time(budget: float, full: pd.Series, streamed: pd.Series) -> float:
    """Seconds of a step at a budget (GB): what does not fit is streamed, in proportion.

    At or above full fine-tuning's peak nothing is streamed; at the streamed step's peak everything is.
    """
    share = (full["peak_gb"] - budget) / (full["peak_gb"] - streamed["peak_gb"])
    return float(full["step_s"] + np.clip(share, 0.0, 1.0) * (streamed["step_s"] - full["step_s"]))


def data(tables: Tables) -> pd.DataFrame:
    """Relative time per method and budget, and BoolQ accuracies; the paper's factor at 4 GB."""
    cost = tables.cost[tables.cost["stands_for"] == "llama-7b"].drop_duplicates("method").set_index("method")
    rows = []
    for method in METHODS:
        if method not in cost.index:
            continue
        for budget in BUDGETS:
            if cost.loc[method]["peak_gb"] <= budget:
                seconds = budget_time(budget, cost.loc["ft_oracle"], cost.loc[method])
                rows.append(_row("seconds", method, budget, seconds, "modelled"))
                factor = seconds / cost.loc["ft_oracle"]["step_s"]
                rows.append(_row("factor", method, budget, factor, "modelled"))
    for r in tables.paper[tables.paper["metric"].eq("time_factor_max")].itertuples():
        rows.append(_row("factor", r.metric, BUDGETS[-1], float(r.value), "paper"))
    final = tables.accuracy[(tables.accuracy["split"] == "test") & (tables.accuracy["main"] == 1)]
    for r in final[(final["task"] == TASK) & final["method"].isin(SHOWN)].itertuples():
        rows.append(_row("accuracy", r.method, "", 100 * r.mean, "measured", r.world, 100 * r.low, 100 * r.high))
    paper = tables.paper_accuracy()
    for r in paper[(paper["task"] == TASK) & paper["method"].isin(SHOWN)].itertuples():
        rows.append(_row("accuracy", r.method, "", float(r.value), "paper"))
    return tables.with_step(pd.DataFrame(rows))


def _row(what: str, method: str, budget: float | str, value: float, source: str, world: str = "",
         low: float | None = None, high: float | None = None) -> dict:  # fmt: skip
    return {
        "what": what, "method": method, "budget_gb": budget, "world": world, "value": value,
        "low": value if low is None else low, "high": value if high is None else high, "source": source,
    }  # fmt: skip


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """Left: BoolQ accuracy. Right: time of a step relative to full fine-tuning without a limit."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(look.width_inches, look.width_inches * 0.4), layout="constrained"
    )
    accuracy = df[df["what"] == "accuracy"]
    measured = accuracy[accuracy["source"] == "measured"]
    shown = style.methods_in(measured, SHOWN)
    for x, method in enumerate(shown):
        for row in measured[measured["method"] == method].itertuples():
            error = style.error(row.value, row.low, row.high)
            left.bar(x, row.value, 0.65, color=style.colour(method), yerr=error, capsize=2)
        for value in accuracy[(accuracy["source"] == "paper") & (accuracy["method"] == method)]["value"]:
            left.scatter(x, value, **{**style.PAPER, "label": "paper" if x == 0 else None})
    left.set_xticks(range(len(shown)), [style.label(m).split(" (")[0].replace("-", "-\n") for m in shown])
    worlds = [w for w in df["world"].unique() if w]
    left.set_title(f"accuracy, {style.task_label(TASK, worlds[0] if worlds else 'real')}")
    style.percent_axis(left)
    factor = df[(df["what"] == "factor") & (df["source"] == "modelled")]
    for method in METHODS:
        mine = factor[factor["method"] == method]
        places = [BUDGETS.index(int(b)) for b in mine["budget_gb"]]
        right.plot(
            places, mine["value"], color=style.colour(method), marker=style.marker(method), label=style.label(method)
        )
    marks = df[(df["what"] == "factor") & (df["source"] == "paper")]
    right.scatter([len(BUDGETS) - 1] * len(marks), marks["value"], **{**style.PAPER, "label": "paper"})
    right.set_xticks(range(len(BUDGETS)), [f"{b} GB" for b in BUDGETS])
    right.set_xlabel("memory budget")
    right.set_title("time of a step / full fine-tuning's")
    right.set_ylim(0, 1.1 * float(df[df["what"] == "factor"]["value"].max()) if len(factor) else None)
    right.legend(frameon=False)
    style.caption(
        figure, df, "Both methods compute full fine-tuning's gradients, so their accuracy with all clients is the "
        f"oracle's. Time: Llama-7B, {style.batch(df)}, {style.told(df, 'device')}'s speed and storage, I/O not "
        "overlapped; what exceeds the budget is streamed, in proportion. "
        "Plain recomputation keeps all weights and gradients (26 GB), so below that "
        "weights are streamed too.",
    )  # fmt: skip
    return figure
