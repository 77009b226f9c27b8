"""Accuracy against liars, clients that do not answer, clients asked which blocks to take, and examples a client."""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures, setting_values

READS = ("ablations",)
PANELS = {
    "votes": "share of clients that lie in votes",
    "sums": "share of clients that lie in sums",
    "answering": "share that answers in time",
    "surveyed": "cohorts surveyed",
    "rounds": "rounds a block, place by place",
    "items": "questions a client",
}
SAID = {  # in the caption, where there is such a panel
    "votes": "Liars rank the worst block first, or send sums of labels turned round, as much as bounds allow. "
    "Rules are drawn side by side.",
    "answering": "Who drops out and who is late count alike; methods that assemble ask again.",
    "surveyed": "Dotted in the panel of cohorts: the base setting.",
}
LINES = {"": "-", "no bound": "-", "bounded": "--", "weighted": "-", "median": "--", "borda": ""}
ASIDE = {"median": 0.08, "bounded": 0.08, "borda": 0.16}  # so that equal values do not hide each other
BORDA: dict[str, Any] = {"marker": "s", "mfc": "white", "ms": 4.5}  # a rule that has points and no line
LIE, BOUND = {"federated.liars", "federated.lie"}, {"federated.row_norm", "federated.max_examples"}
# x of the base setting
BASE = {"votes": 0.0, "sums": 0.0, "answering": 1.0, "surveyed": math.nan, "items": math.inf}
COLUMNS = ["panel", "task", "world", "method", "rule", "x", "value", "low", "high", "runs", "source"]


def data(tables: Tables) -> pd.DataFrame:
    """Test accuracy in percent with its interval by panel, method, rule against liars ("" elsewhere) and x.

    The base setting is where a panel's lines begin or end: no liars, all answer, all questions (infinitely many).
    In the panel of cohorts its x is empty, as no table says how many it asks; rounds a block are another rule's.
    """
    rows = [
        {
            "panel": panel, "task": r.task, "world": r.world, "method": r.method, "rule": rule, "x": x,
            "value": 100 * r.mean, "low": 100 * r.low, "high": 100 * r.high, "runs": r.runs, "source": r.source,
        }
        for r in tables.ablations.itertuples()
        for panel, rule, x in places(r.changed)
    ]  # fmt: skip
    df = pd.DataFrame(rows, columns=COLUMNS)
    if df.empty:  # a study of one setting
        return df
    swept = {(r.panel, r.method) for r in df.itertuples() if not math.isnan(r.x) and r.x != BASE.get(r.panel)}
    df = df[[(r.panel, r.method) in swept for r in df.itertuples()]]
    order = df["panel"].map(list(PANELS).index)
    by = ["order", "task", "method", "rule", "x"]
    return df.assign(order=order).sort_values(by, ignore_index=True).drop(columns="order")


def places(changed: str) -> list[tuple[str, str, float]]:
    """Panel, rule and x of a setting, given as the tables write it (``key=value key=value``); none for most."""
    value = setting_values(changed)
    keys = set(value)
    vote = next((key for key in keys if key.endswith("selection.vote")), "")
    rounds, surveyed, rule = (
        next((key for key in keys if key.endswith(f"selection.{name}")), "")
        for name in ("rounds_per_block", "survey_rounds", "rule")
    )
    if not keys:
        return [(panel, {"votes": "weighted", "sums": "no bound"}.get(panel, ""), x) for panel, x in BASE.items()]
    lying = float(value.get("federated.liars", 0.0))
    if keys <= {*LIE, vote} and value.get("federated.lie", "votes") == "votes":
        return [("votes", value.get(vote, "weighted"), lying)]
    if keys <= LIE | BOUND and value.get("federated.lie", "sums") == "sums":
        return [("sums", "no bound" if value.get("federated.max_examples") is None else "bounded", lying)]
    if len(keys) == 1 and keys <= {"federated.dropout", "federated.stragglers"}:
        return [("answering", "", round(1 - float(*value.values()), 6))]
    if keys == {"partition.items_per_client"}:
        return [("items", "", float(*value.values()))]
    if keys == {surveyed}:
        return [("surveyed", "", math.inf if value[surveyed] is None else float(value[surveyed]))]
    place_by_place = value.get(rule) == "probe" and keys == {rule, rounds}
    return [("rounds", "", float(value[rounds]))] if place_by_place else []


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """A row of panels each, a column a task; colour is the method, dashes the rule against liars."""
    tasks, panels = style.tasks(df["task"]), [panel for panel in PANELS if panel in set(df["panel"])]
    figure, axes = plt.subplots(
        len(panels), len(tasks), sharey=True, squeeze=False, layout="constrained",
        figsize=(look.width_inches, 1.45 * len(panels) + 0.6),
    )  # fmt: skip
    for panel, row in zip(panels, axes, strict=True):
        for ax, task in zip(row, tasks, strict=True):
            _panel(ax, df[(df["panel"] == panel) & (df["task"] == task)], _ticks(df, panel))
            ax.set_xlabel(PANELS[panel])
        row[0].set_ylabel("test accuracy")
    for ax, task in zip(axes[0], tasks, strict=True):
        ax.set_title(style.task_label(task, df[df["task"] == task]["world"].iloc[0]))
    style.percent_axis(axes[0][0], style.tens_below(df["low"]))
    methods = style.methods_in(df)
    handles = [
        Line2D([], [], color=style.colour(m), marker=style.marker(m), ms=3.5, label=style.label(m)) for m in methods
    ]
    rules = [("-", "weighted vote; no bound on sums"), ("--", "median vote; bounded sums")]
    if {"votes", "sums"} & set(panels):
        handles += [Line2D([], [], color="black", ls=line, label=label) for line, label in rules]
    if "borda" in set(df["rule"]):
        handles.append(Line2D([], [], color="black", ls="", label="Borda count", **BORDA))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    said = [text for panel, text in SAID.items() if panel in panels]
    style.caption(figure, df, " ".join([*said, style.interval(df)]))
    return figure


def _panel(ax: Axes, df: pd.DataFrame, ticks: list[float]) -> None:
    for method in style.methods_in(df):
        for rule in dict.fromkeys(df["rule"]):
            mine = df[(df["method"] == method) & (df["rule"] == rule)].sort_values("x")
            for value in mine[mine["x"].isna()]["value"]:
                ax.axhline(value, color=style.colour(method), ls=":", lw=0.9)
            mine = mine[mine["x"].notna()]
            if len(mine):
                error = style.error(mine["value"], mine["low"], mine["high"])
                mark = BORDA if rule == "borda" else {"marker": style.marker(method), "ms": 3.5}
                ax.errorbar(
                    [ticks.index(x) + ASIDE.get(rule, 0) for x in mine["x"]], mine["value"], yerr=error,
                    color=style.colour(method), ls=LINES[rule], lw=1.1, elinewidth=1.0, capsize=2, clip_on=False,
                    **mark,
                )  # fmt: skip
    ax.set_xticks(range(len(ticks)), ["all" if math.isinf(x) else f"{x:g}" for x in ticks])


def _ticks(df: pd.DataFrame, panel: str) -> list[float]:
    return sorted(set(df[(df["panel"] == panel) & df["x"].notna()]["x"]))
