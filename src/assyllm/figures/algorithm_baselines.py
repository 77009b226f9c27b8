"""Accuracy, its course over modelled time, and speed against algorithm-level baselines (paper figure 15, table 4)."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import OF_PAPER, Tables
from assyllm.params import Figures

READS = ("accuracy", "rounds", "resources", "paper")
SHOWN = (
    "majority", "zero_shot", "ft_practical", "ft_oracle", "lora", "qlora", "fedadapter", "fwdllm", "assyllm_paper",
    "assyllm",
)  # fmt: skip
COLUMNS = ["what", "task", "world", "method", "round", "hours", "hours_source", "value", "low", "high", "source"]


def data(tables: Tables) -> pd.DataFrame:
    """Final accuracies with intervals, test curves over rounds and hours (percent), speed-ups, the paper's beside."""
    return rows_of(tables, SHOWN)


def rows_of(tables: Tables, shown: Sequence[str]) -> pd.DataFrame:
    """The same of any methods: rows ``final``, ``curve`` and ``speedup``."""
    rows = pd.concat([final_rows(tables), curve_rows(tables), speedup_rows(tables)], ignore_index=True)
    return tables.with_step(rows[rows["method"].isin(shown)].reset_index(drop=True), "resources")


def final_rows(tables: Tables) -> pd.DataFrame:
    """Final test accuracy of every method and task in percent, and the paper's."""
    final = tables.accuracy[(tables.accuracy["split"] == "test") & (tables.accuracy["main"] == 1)]
    rows = [
        {
            "what": "final", "task": r.task, "world": r.world, "method": r.method, "round": "", "hours": "",
            "hours_source": "", "value": 100 * r.mean, "low": 100 * r.low, "high": 100 * r.high, "source": "measured",
        }
        for r in final.itertuples()
    ]  # fmt: skip
    rows += [_paper("final", r.task, r.method, float(r.value)) for r in tables.paper_accuracy().itertuples()]
    return pd.DataFrame(rows, columns=COLUMNS)


def curve_rows(tables: Tables) -> pd.DataFrame:
    """Mean test accuracy over rounds, and the modelled hours that were gone by then."""
    rows = [
        {"what": "curve", "task": r.task, "world": r.world, "method": r.method, "round": r.round,
         "hours": "" if r.hours == "" else float(r.hours), "hours_source": r.hours_source,
         "value": 100 * r.mean, "low": 100 * r.low, "high": 100 * r.high, "source": "measured"}
        for r in tables.rounds.itertuples()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def speedup_rows(tables: Tables) -> pd.DataFrame:
    """Time of FT-practical over each method's (modelled), and the paper's."""
    paper = tables.paper[tables.paper["metric"] == "speedup"]
    rows = [
        {"what": "speedup", "task": r.task, "world": "", "method": r.method, "round": r.rounds, "hours": r.hours,
         "hours_source": "modelled", "value": float(r.speedup), "low": float(r.speedup), "high": float(r.speedup),
         "source": "modelled"}
        for r in tables.resources.itertuples() if str(r.speedup) not in ("", "nan")
    ]  # fmt: skip
    rows += [_paper("speedup", r.dataset, OF_PAPER.get(r.method, r.method), float(r.value)) for r in paper.itertuples()]
    return pd.DataFrame(rows, columns=COLUMNS)


def _paper(what: str, task: str, method: str, value: float) -> dict:
    return dict.fromkeys(COLUMNS, "") | {
        "what": what, "task": task, "method": method, "value": value, "low": value, "high": value, "source": "paper",
    }  # fmt: skip


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """Columns are tasks. Top: reported accuracy. Middle: accuracy over hours. Bottom: speed-up over FT-practical."""
    return panels(
        df, look, "Top: test accuracy of the reported round (the best on dev), 95 % interval. Middle: its "
        f"course over modelled time, range over seeds. Bottom: FT-practical's time over the method's, each "
        f"{style.UNTIL}. Markers in bars are the lines'. Stars: the paper (7B models, real tasks).",
    )  # fmt: skip


def panels(df: pd.DataFrame, look: Figures, text: str) -> Figure:
    """The three rows of panels for any methods."""
    final, curve = df[df["what"] == "final"], df[(df["what"] == "curve") & (df["hours"].astype(str) != "")]
    measured = final[final["source"] == "measured"]
    tasks = style.tasks(measured["task"])
    methods = style.methods_in(measured)
    speed = df[df["what"] == "speedup"]
    fast = style.methods_in(speed[speed["source"] == "modelled"], methods)
    heights = [0.155 * len(methods) + 0.15, 1.35, 0.155 * len(fast) + 0.15]
    figure, axes = plt.subplots(
        3, len(tasks), figsize=(look.width_inches, sum(heights) + 1.5), layout="constrained", squeeze=False,
        sharey="row", height_ratios=heights,
    )  # fmt: skip
    for place, task in enumerate(tasks):
        top, middle, bottom = axes[:, place]
        style.bars(top, methods, final[final["task"] == task])
        style.method_axis(top, methods)
        style.percent_axis(top, 0, 100, along="x")
        top.set_title(style.task_label(task, measured[measured["task"] == task]["world"].iloc[0]))
        top.set_xlabel("test accuracy")
        style.lines(middle, methods, curve[curve["task"] == task], "hours")
        style.log_axis(middle)
        middle.set_xlabel("hours on a device (modelled)")
        mine = speed[speed["task"] == task]
        low = float(mine["value"].min()) / 2 if len(mine) else 0.1
        style.log_axis(bottom, unit=" x")
        style.bars(bottom, fast, mine, start=low)
        bottom.axvline(1, color="black", lw=0.8)
        bottom.set_xlim(low, None)
        style.method_axis(bottom, fast)
        bottom.set_xlabel("speed-up over FT-practical")
    shown = curve[curve["task"].isin(tasks)]
    style.percent_axis(axes[1][0], style.tens_below(shown["low"]))
    axes[1][0].set_ylabel("test accuracy")
    style.caption(figure, df, f"{text} {style.steps(df)}")
    return figure
