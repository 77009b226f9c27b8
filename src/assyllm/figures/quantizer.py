"""Pool size and accuracy by precision (paper table 1 and figure 20a), and the curve of accuracy against bytes."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("quantizer", "paper")
PAPER_SIZES = {"assyllm_fp16": 16.0, "assyllm_int8": 8.0, "assyllm_int4": 4.36}  # rows of the paper's table 1 -> bits
PAPER_MIX = (4.77, 12.6, 70.2)  # bits, GB, percent below FP16
KINDS = {
    "layerwise": ("INT4/INT8 by layer", "s"), "paper_rule": ("paper's thresholds", "D"), "nf4": ("nf4", "v"),
    "nearest": ("plain rounding", "+"),
}  # fmt: skip
METHODS = ("assyllm", "assyllm_paper")  # the first that was run is drawn
WIDE = 8  # points of loss from which the axis is logarithmic beyond 2
COLOURS = {0: "#D55E00", 1: "#0072B2"}
NAMES = {0: "blocks replaced, nothing re-fitted", 1: "adapters and head re-fitted"}


def data(tables: Tables) -> pd.DataFrame:
    """Sizes (GB) at 7B shapes, ours and the paper's; accuracies (percent) and differences to 16 bit (points)."""
    df = tables.quantizer.copy()
    for column in ("bits", "size_gb", "mean", "low", "high", "difference", "difference_low", "difference_high"):
        df[column] = pd.to_numeric(df[column], errors="coerce")
        if column not in ("bits", "size_gb"):
            df[column] *= 100
    df["kind"] = [
        _kind(name) if what == "accuracy" else "" for what, name in zip(df["what"], df["precision"], strict=True)
    ]
    paper = tables.paper
    rows = []
    for method, bits in PAPER_SIZES.items():
        for value in paper[(paper["metric"] == "pool_size") & (paper["method"] == method)]["value"]:
            rows.append({"what": "size", "precision": method, "bits": bits, "size_gb": float(value), "source": "paper"})
    rows.append({"what": "size", "precision": "paper's mix", "bits": PAPER_MIX[0], "size_gb": PAPER_MIX[1],
                 "source": "paper"})  # fmt: skip
    return pd.concat([df, pd.DataFrame(rows)], ignore_index=True)


def _kind(setting: str) -> str:
    if setting in KINDS:
        return setting
    if setting.endswith("_nearest"):
        return "nearest"
    return "uniform" if setting.startswith(("int", "fp")) else "mixed"


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """Left: pool size against bits at 7B shapes. Then a panel a task: points lost against bits a weight."""
    measured = df[df["what"] == "accuracy"]
    methods = style.methods_in(measured, METHODS)
    measured = measured[measured["method"] == methods[0]] if methods else measured
    tasks = style.tasks(measured["task"])
    panels = 1 + len(tasks)
    figure, axes = plt.subplots(
        1, panels, figsize=(look.width_inches * (0.5 if panels == 1 else 1), look.width_inches * 0.4),
        layout="constrained", squeeze=False, gridspec_kw={"width_ratios": [1.0] * panels},
    )  # fmt: skip
    ax = axes[0][0]
    _sizes(ax, df[df["what"] == "size"])
    for ax, task in zip(axes[0][1:], tasks, strict=True):
        mine = measured[measured["task"] == task]
        _differences(ax, mine)
        ax.set_title(style.task_label(task, mine["world"].iloc[0]), fontsize=look.font_points - 0.5)
        ax.set_xlabel("bits a weight")
    low, high = measured["difference_low"].min() - 0.5, measured["difference_high"].max() + 0.5
    for place, ax in enumerate(axes[0][1:]):
        if low < -WIDE:
            ax.set_yscale("symlog", linthresh=2)
            ticks = [tick for tick in (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10) if low < tick < high]
            ax.set_yticks(ticks, [str(tick) for tick in ticks])
            ax.minorticks_off()
        ax.set_ylim(low, high)
        ax.tick_params(labelleft=place == 0)
    if tasks:
        axes[0][1].set_ylabel("points against 16 bit")
    handles: dict[str, Any] = {}
    for ax in axes[0]:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=3, frameon=False)
    text = "Left: the pool's bytes at true 7B shapes, scales and embeddings included (exact; groups of 128)."
    if tasks:
        text += (
            f" Right: test accuracy of {style.label(methods[0])}'s models less that of the 16-bit ones, by bits a"
            " weight of the tiny pool (groups of 32), errors of rounding compensated unless said otherwise: mean and"
            " 95 % interval of the paired difference."
        )
        text += " Logarithmic beyond 2 points." if low < -WIDE else ""
    style.caption(figure, df, text)
    return figure


def _sizes(ax: plt.Axes, df: pd.DataFrame) -> None:
    ours = df[df["source"] == "modelled"].sort_values("bits")
    uniform = ours[ours["precision"].str.match(r"INT|FP")]
    mixes = ours[~ours["precision"].str.match(r"INT|FP")]
    ax.plot(mixes["bits"], mixes["size_gb"], "-", color="#0072B2", lw=1, label="mix of widths")
    ax.plot(uniform["bits"], uniform["size_gb"], "o", color="#999999", ms=4, label="uniform")
    mark = mixes[mixes["precision"].str.startswith("paper")]
    paper = df[df["source"] == "paper"]
    star: dict[str, Any] = {**style.PAPER, "s": 44, "label": "paper"}
    ax.scatter(paper["bits"], paper["size_gb"], **star)
    ax.plot(mark["bits"], mark["size_gb"], "o", color="#D55E00", ms=3, zorder=6, label="paper's mix, our bytes")
    for row in uniform.itertuples():
        below = row.precision in ("INT3", "INT4", "INT8")
        aside = (13, -5) if row.precision == "INT4" else (5, -8) if below else (-7, 4)
        ax.annotate(row.precision, (row.bits, row.size_gb), xytext=aside,
                    textcoords="offset points", ha="left" if below else "right", fontsize=7)  # fmt: skip
    ax.set_xlim(0.5, 17)
    ax.set_ylim(0, 46)
    ax.set_xlabel("bits a weight")
    ax.set_ylabel("pool, GB")
    ax.set_title("size at 7B shapes")


def _differences(ax: plt.Axes, mine: pd.DataFrame) -> None:
    ax.axhline(0, color="black", lw=0.6)
    ax.axhline(-1.1, color="black", lw=0.6, ls=":", label="paper: its mix loses 1.1 points")
    for refit, colour in COLOURS.items():
        part = mine[(mine["refit"].astype(str) == str(refit)) & (mine["kind"] == "mixed")].sort_values("bits")
        _points(ax, part, "o-", colour, f"our mix, {NAMES[refit]}")
        part = mine[(mine["refit"].astype(str) == str(refit)) & (mine["kind"] == "uniform")].sort_values("bits")
        _points(ax, part, "x", colour, f"uniform, {NAMES[refit]}")
    for kind, (name, marker) in KINDS.items():
        part = mine[(mine["kind"] == kind) & (mine["refit"].astype(str) == "0")]
        _points(ax, part, marker, "#999999", f"{name}, not re-fitted")
    ax.set_xscale("log", base=2)
    ax.set_xticks([5, 6, 8, 16], ["5", "6", "8", "16"])
    ax.minorticks_off()


def _points(ax: plt.Axes, part: pd.DataFrame, fmt: str, colour: str, name: str) -> None:
    if part.empty:
        return
    centre = part["difference"]
    error = style.error(centre, part["difference_low"], part["difference_high"])
    ax.errorbar(part["bits"], centre, yerr=error, fmt=fmt, color=colour, ms=3.5, lw=1, elinewidth=0.6, label=name)
