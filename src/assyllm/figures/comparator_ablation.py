"""The Block Comparator taken apart: CKA, COR, their mix, restrictions, chance, and our rule (paper section 4.4)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("ablations", "accuracy", "runs")
BARS = {  # (method, setting) -> name
    ("assyllm_paper", "w_0"): "COR only\n(w = 0)",
    ("assyllm_paper", "w_0.25"): "w = 0.25",
    ("assyllm_paper", "base"): "w = 0.5\n(base)",
    ("assyllm_paper", "w_0.75"): "w = 0.75",
    ("assyllm_paper", "w_1"): "CKA only\n(w = 1)",
    ("assyllm_paper", "rule_paper"): "w = 0.5,\nany\nblock",
    ("assyllm_paper", "rule_paper_distinct"): "w = 0.5,\nnot the\nnext",
    ("assyllm_paper", "rule_random"): "random",
    ("assyllm_paper", "distinct"): "not the\nnext, all\nread",
    ("random_blocks", "base"): "our frame,\nrandom",
    ("assyllm", "base"): "our rule",
}


def data(tables: Tables) -> pd.DataFrame:
    """Test accuracy in percent with its interval, by rule and task."""
    rows = []
    control = tables.accuracy[(tables.accuracy["method"] == "random_blocks") & (tables.accuracy["split"] == "test")]
    base = control[control["setting"] == ""].assign(setting="base")  # where it ran under no other setting
    for r in (*tables.ablations.itertuples(), *base.itertuples()):
        if (r.method, r.setting) in BARS:
            rows.append(
                {
                    "task": r.task, "world": r.world, "method": r.method, "setting": r.setting, "value": 100 * r.mean,
                    "low": 100 * r.low, "high": 100 * r.high, "runs": r.runs, "source": r.source,
                }
            )  # fmt: skip
    df = pd.DataFrame(rows).drop_duplicates(["task", "method", "setting"], ignore_index=True)
    return df.assign(zoos=tables.zoo_number())


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """A panel a task, a bar a rule; dashed: chance among other models' blocks in the paper's frame."""
    return bars(
        df, look, BARS,
        "Block selection rules; orange: in the frame of the paper's method, among other models' blocks unless "
        "said otherwise. Dashed: random blocks in that frame.", ("assyllm_paper", "rule_random"),
    )  # fmt: skip


def bars(
    df: pd.DataFrame, look: Figures, names: dict[tuple[str, str], str], text: str, line: tuple[str, str]
) -> Figure:
    """Accuracy by (method, setting), a panel a task, with a dashed line at ``line``'s."""
    tasks = style.tasks(df["task"])
    found = set(zip(df["method"], df["setting"], strict=True))
    shown = [key for key in names if key in found]
    figure, axes = plt.subplots(
        len(tasks), 1, sharex=True, squeeze=False, layout="constrained",
        figsize=(look.width_inches, 1.25 * len(tasks) + 0.9),
    )  # fmt: skip
    for ax, task in zip(axes[:, 0], tasks, strict=True):
        mine = df[df["task"] == task].set_index(["method", "setting"])
        for x, key in enumerate(shown):
            if key not in mine.index:
                continue
            row = mine.loc[key]
            colour, alpha = style.colour(key[0]), 1.0 if key[1] == "base" else 0.6
            ax.bar(
                x, row["value"], 0.7, yerr=style.error(row["value"], row["low"], row["high"]), capsize=2,
                color=colour, alpha=alpha,
            )  # fmt: skip
            ax.annotate(f"{row['value']:.1f}", (x, 0), (0, 2), textcoords="offset points", ha="center", fontsize=7,
                        color=style.ink(colour, alpha))  # fmt: skip
        if line in mine.index:
            ax.axhline(mine.loc[line]["value"], color="black", lw=0.7, ls="--")
        style.percent_axis(ax)
        ax.set_title(style.task_label(task, df[df["task"] == task]["world"].iloc[0]))
        ax.set_ylabel("accuracy")
        ax.grid(axis="x", visible=False)
    axes[-1][0].set_xticks(range(len(shown)), [names[key] for key in shown])
    style.caption(figure, df, f"{text} {style.interval(df)}")
    return figure
