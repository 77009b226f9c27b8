"""Energy and traffic to a method's accuracy, one-off download apart (paper figure 19)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import OF_PAPER, Tables
from assyllm.params import Figures

READS = ("resources", "rounds", "paper")
PANELS = {"energy_kj": "energy, kJ", "traffic_gb": "traffic, GB", "hours": "time, hours"}
REDUCTIONS = {"energy_kj": "energy_reduction_vs_full_ft", "traffic_gb": "traffic_reduction_vs_full_ft"}
TASK = "boolq"  # the paper's


def drawn(df: pd.DataFrame) -> str:
    """The task that is drawn: the paper's, or the first that there is."""
    tasks = sorted(set(df["task"]))
    return TASK if TASK in tasks or not tasks else tasks[0]


def data(tables: Tables) -> pd.DataFrame:
    """One row per method, task and quantity; the paper's reduction applied to our full fine-tuning on BoolQ."""
    rows = []
    worlds = dict(zip(tables.rounds["task"], tables.rounds["world"], strict=True))
    for r in tables.resources.itertuples():
        for what in (*PANELS, "oneoff_gb", "rounds"):
            rows.append(
                {"method": r.method, "task": r.task, "world": worlds.get(r.task, ""), "what": what,
                 "value": float(getattr(r, what)), "source": "measured" if what == "rounds" else "modelled"}
            )  # fmt: skip
    df = pd.DataFrame(rows, columns=["method", "task", "world", "what", "value", "source"])
    full = df[(df["method"] == "ft_oracle") & (df["task"] == TASK)].set_index("what")["value"]
    paper = tables.paper.set_index("metric")["value"]
    marks = [
        {"method": "assyllm_paper", "task": TASK, "world": "", "what": what,
         "value": full[what] * (1 - float(paper[name]) / 100), "source": "paper"}
        for what, name in REDUCTIONS.items() if what in full
    ]  # fmt: skip
    speedups = tables.paper[(tables.paper["metric"] == "speedup") & (tables.paper["dataset"] == TASK)]
    base = df[(df["method"] == "ft_practical") & (df["task"] == TASK) & (df["what"] == "hours")]["value"]
    for r in speedups.itertuples():
        method = OF_PAPER.get(r.method, r.method)
        if len(base) and method != "ft_practical":
            marks.append(
                {"method": method, "task": TASK, "world": "", "what": "hours",
                 "value": base.iloc[0] / float(r.value), "source": "paper"}
            )  # fmt: skip
    found = pd.concat([df, pd.DataFrame(marks, columns=df.columns)], ignore_index=True) if marks else df
    return tables.with_step(found, "resources")


def part_floor(mine: pd.DataFrame, what: str) -> float:
    """Where a logarithmic axis starts: below the smallest bar or mark."""
    values = mine[mine["what"].isin([what, "oneoff_gb"] if what == "traffic_gb" else [what])]["value"]
    return float(values[values > 0].min()) / 3 if (values > 0).any() else 1e-3


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """Three panels of bars on a logarithmic axis, of one task; hollow bars are the one-off download."""
    mine = df[df["task"] == drawn(df)].assign(low=lambda d: d["value"], high=lambda d: d["value"])
    methods = style.methods_in(mine[mine["source"] == "modelled"])
    figure, axes = plt.subplots(
        1, len(PANELS), figsize=(look.width_inches, 0.19 * len(methods) + 0.8), layout="constrained", sharey=True
    )
    for ax, (what, title) in zip(axes, PANELS.items(), strict=True):
        floor = part_floor(mine, what)
        style.log_axis(ax)
        style.bars(ax, methods, mine[(mine["what"] == what) & (mine["value"] > 0)], start=floor)
        if what == "traffic_gb":
            for row in mine[(mine["what"] == "oneoff_gb") & mine["method"].isin(methods)].itertuples():
                ax.barh(methods.index(row.method), row.value - floor, 0.74, left=floor, fill=False, edgecolor="black",
                        lw=0.7)  # fmt: skip
        style.method_axis(ax, methods)
        ax.set_xlim(floor, None)
        ax.set_xlabel(title)
    task = drawn(df)
    style.caption(
        figure, df,
        f"{style.task_label(task, style.told(mine, 'world'))}, one client's place in the cohort, {style.UNTIL}: rounds "
        f"and walks through blocks measured at tiny scale x steps. {style.steps(df)} Hollow: "
        "one-off download of the model or pool, which the paper leaves out, as it does the link's time. Stars: "
        "our FT-oracle's energy and traffic less the paper's reductions, our FT-practical's time over its speed-ups.",
    )  # fmt: skip
    return figure
