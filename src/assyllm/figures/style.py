"""One look for every figure: colours and markers by method, captions that name scale and world, stable bytes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from assyllm.params import Figures

# Okabe and Ito's colours: told apart by colour-blind readers; lightness differs, so grey prints work too
METHODS = {
    "majority": ("Majority class", "#999999", "x"),
    "zero_shot": ("Zero-shot", "#F0E442", "v"),
    "ft_practical": ("FT-practical", "#56B4E9", "s"),
    "ft_oracle": ("FT-oracle", "#0072B2", "o"),
    "lora": ("LoRA", "#009E73", "^"),
    "lora_all": ("LoRA, all clients", "#00664B", "8"),
    "qlora": ("QLoRA", "#CC79A7", "P"),
    "qlora_recomputation": ("QLoRA + recomputation", "#8C3A67", "p"),
    "fedadapter": ("FedAdapter", "#E69F00", "<"),
    "fwdllm": ("FwdLLM", "#B8860B", ">"),
    "recomputation": ("Recomputation (streamed)", "#6A51A3", "h"),
    "swapping": ("Swapping (streamed)", "#9E9AC8", "d"),
    "one_model_head": ("One model + head", "#666666", "."),
    "all_models_head": ("All models + head", "#444444", "+"),
    "server_head": ("Server alone + head", "#7F7F7F", "H"),
    "choices_only": ("Choices only", "#BBBBBB", "x"),
    "untrained_blocks": ("Untrained blocks", "#C7B299", "1"),
    "one_model_blocks": ("One model's blocks", "#8FAADC", "2"),
    "random_blocks": ("Random blocks", "#70AD47", "3"),
    "assyllm_paper": ("AssyLLM (paper's rule)", "#D55E00", "X"),
    "assyllm": ("AssyLLM (ours)", "#8B1A1A", "D"),
}
TASKS = {"boolq": "BoolQ", "piqa": "PIQA", "openbookqa": "OpenBookQA"}
MODELS = {
    "llama": "Llama", "vicuna": "Vicuna", "opt": "OPT", "bert": "BERT", "roberta": "RoBERTa",
    # and the shapes that they stand for
    "llama-7b": "Llama-7B", "vicuna-7b": "Vicuna-7B", "opt-6.7b": "OPT-6.7B", "bert-base": "BERT-base",
    "roberta-large": "RoBERTa-large",
}  # fmt: skip
# how long a method's modelled hours and energy are counted (cost.resources)
UNTIL = "until accuracy on dev is within half a point of its (smoothed) best (methods that assemble: all their rounds)"
PAPER: dict[str, Any] = {
    "marker": "*",
    "color": "black",
    "s": 55,
    "zorder": 5,
    "label": "paper (7B models, real tasks)",
}


def apply(look: Figures) -> None:
    """Set matplotlib's defaults from the ``figures`` section."""
    plt.rcdefaults()
    matplotlib.rcParams.update(
        {
            "font.size": look.font_points,
            "axes.titlesize": look.font_points + 1,
            "axes.labelsize": look.font_points,
            "xtick.labelsize": max(7, look.font_points - 1),
            "ytick.labelsize": max(7, look.font_points - 1),
            "legend.fontsize": max(7, look.font_points - 1),
            "figure.dpi": look.dpi,
            "savefig.dpi": look.dpi,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.axisbelow": True,
            "pdf.fonttype": 42,
            "svg.hashsalt": "assyllm",
        }
    )


def label(method: str) -> str:
    """A method's name as figures write it."""
    return METHODS[method][0] if method in METHODS else method


def colour(method: str) -> str:
    """A method's colour."""
    return METHODS[method][1] if method in METHODS else "#CC79A7"


def ink(face: str, alpha: float = 1.0, above: float = 0.5) -> str:
    """Black or white, which can be read on a colour over white paper: black on what is lighter than ``above``."""
    light = 1 - alpha + alpha * np.array(matplotlib.colors.to_rgb(face)) @ (0.299, 0.587, 0.114)
    return "black" if light > above else "white"


def model_label(model: str) -> str:
    """The name of a member of the zoo, or of the shape that it stands for."""
    return MODELS.get(model, model)


def task_label(task: str, world: str) -> str:
    """A task's name; the generated ones say so, lest they be taken for the real ones."""
    return f"{TASKS.get(task, task)}{' (generated)' if world == 'embedded' else ''}"


def tasks(found: Iterable[str]) -> list[str]:
    """The tasks of a table: the paper's in its order, then one's own by name."""
    there = set(found)
    return [*(task for task in TASKS if task in there), *sorted(there - set(TASKS))]


def methods_in(df: pd.DataFrame, among: Iterable[str] = METHODS) -> list[str]:
    """Those of some methods (of all) that a table has rows of, in their order."""
    there = set(df["method"])
    return [method for method in among if method in there]


def error(value: Any, low: Any, high: Any) -> np.ndarray:
    """How far an interval reaches below and above its value, or those of a column's do: [2, n]; never below 0."""
    return np.array([np.atleast_1d(value - low), np.atleast_1d(high - value)]).clip(min=0)


def caption(figure: Figure, df: pd.DataFrame, text: str, scale: str = "true shapes") -> None:
    """Write under a figure what was run, where its numbers come from, at which scale (``scale`` without a world)."""
    worlds = {"embedded": "generated world, tiny models pre-trained here", "real": "real tasks, small models"}
    scales = [worlds[world] for world in worlds if "world" in df and world in set(df["world"])]
    found = {source for column in df.columns if column.endswith("source") for source in df[column]}
    sources = ", ".join(s for s in ("measured", "modelled") if s in found)
    line = f"{text} Scale: {', '.join(scales) or scale}. Source: {sources or 'drawn'}."
    width = int(figure.get_figwidth() * 17.5)
    figure.text(0.01, -0.01, textwrap.fill(line, width), ha="left", va="top", fontsize=7)


def batch(df: pd.DataFrame) -> str:
    """What a caption says of the modelled steps, by the columns of ``Tables.with_step``."""
    optimizer = {"sgd": "stateless SGD", "adamw": "AdamW"}.get(told(df, "optimizer"), told(df, "optimizer"))
    return f"batch {told(df, 'batch')} x {told(df, 'tokens')} tokens, {optimizer}"


def steps(df: pd.DataFrame) -> str:
    """What a caption says of the steps that hours and energy are counted in, by ``Tables.with_step``'s columns."""
    device = told(df, "device")
    return f"Steps: of Llama-7B, in whose passes blocks are counted, at a {device}'s speed." if device else ""


def told(df: pd.DataFrame, column: str) -> str:
    """The one value of a column where there is any."""
    return next((str(value) for value in df.get(column, ()) if value != ""), "")


def interval(df: pd.DataFrame) -> str:
    """What a caption says of the bars, by the number of runs."""
    runs = pd.to_numeric(df["runs"], errors="coerce").max()
    if runs <= 1:
        return "Bars: 95 % interval over facts, one seed."
    zoos = f" (on {told(df, 'zoos')} zoos)" if told(df, "zoos") not in ("", "1") else ""
    return f"Bars: 95 % interval over {runs:.0f} runs{zoos} and facts."


def nothing(look: Figures) -> Figure:
    """A figure of a study that ran none of the methods that it would show."""
    figure = plt.figure(figsize=(look.width_inches, look.width_inches * 0.2))
    figure.text(0.5, 0.5, "none of the methods that this figure shows was run", ha="center", va="center")
    return figure


def save(figure: Figure, df: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Write NAME.pdf, NAME.png and NAME.csv with bytes that depend on the content only."""
    from io import BytesIO

    from assyllm.artifacts import write_files

    contents = {}
    for suffix, metadata in (("pdf", {"CreationDate": None, "Producer": None}), ("png", {"Software": None})):
        buffer = BytesIO()
        figure.savefig(buffer, format=suffix, bbox_inches="tight", metadata=metadata)
        contents[folder / f"{name}.{suffix}"] = buffer.getvalue()
    contents[folder / f"{name}.csv"] = df.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
    write_files(contents)
    plt.close(figure)
    return list(contents)


def marker(method: str) -> str:
    """A method's marker."""
    return METHODS[method][2] if method in METHODS else "."


def method_axis(ax: Axes, methods: Sequence[str]) -> None:
    """Methods from top to bottom along the y axis."""
    ax.set_yticks(range(len(methods)), [label(m) for m in methods])
    ax.set_ylim(max(len(methods), 1) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)


def bars(ax: Axes, methods: Sequence[str], rows: pd.DataFrame, start: float = 0.0) -> None:
    """Horizontal bars of ``rows`` (method, value, low, high, source) with intervals; the paper's values as stars.

    A bar carries its method's marker, the one that lines have: so bars are the legend of the lines, in grey too.

    Args:
        start: where the axis begins (above 0 on a logarithmic one).
    """
    for row in rows[rows["method"].isin(methods)].itertuples():
        y = methods.index(row.method)
        if row.source == "paper":
            ax.scatter(row.value, y, **{**PAPER, "s": 32, "label": None})
            continue
        ax.barh(y, row.value - start, 0.74, left=start, color=colour(row.method))
        if row.high > row.low:
            reach = error(row.value, row.low, row.high)
            ax.errorbar(row.value, y, xerr=reach, color="black", elinewidth=0.8, capsize=1.5)
        shown = ink(colour(row.method), above=0.75)  # white but on the palest
        ax.plot(0.045, y, marker(row.method), color=shown, mec=shown, ms=3.5, transform=ax.get_yaxis_transform())


def lines(ax: Axes, methods: Sequence[str], rows: pd.DataFrame, x: str) -> None:
    """Curves of ``rows`` (method, value, low, high) over column ``x``, range over seeds shaded, markers sparse."""
    for method in methods:
        mine = rows[rows["method"] == method].sort_values(x)
        if len(mine):
            at = mine[x].astype(float)
            ax.fill_between(at, mine["low"], mine["high"], color=colour(method), alpha=0.15, lw=0)
            ax.plot(at, mine["value"], color=colour(method), marker=marker(method), ms=3.5, lw=1.1,
                    markevery=max(1, len(mine) // 5), label=label(method))  # fmt: skip


def log_axis(ax: Axes, unit: str = "") -> None:
    """A logarithmic x axis with plain numbers at its decades; where it shows one at most, at their 2 and 5 too."""

    def between(value: float, _: int) -> str:
        low, high = np.log10(ax.get_xlim())
        return f"{value:g}{unit}" if np.floor(high) <= np.ceil(low) and f"{value:.0e}"[0] in "25" else ""

    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    ax.xaxis.set_minor_formatter(matplotlib.ticker.FuncFormatter(between))
    ax.tick_params(axis="x", which="minor", pad=5)  # on one line with the decades', whose ticks are longer


def tens_below(values: pd.Series) -> float:
    """Where an axis of percents begins: the tens below the lowest value, 0 where there is none."""
    return float(values.min() // 10 * 10) if len(values) else 0.0


def percent_axis(ax: Axes, low: float = 0.0, high: float = 105.0, along: Literal["x", "y"] = "y") -> None:
    """Y (or x) axis in percent; above 100 there is room for a mark."""
    (ax.set_ylim if along == "y" else ax.set_xlim)(low, high)
    axis = ax.yaxis if along == "y" else ax.xaxis
    axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g %%"))
    if along == "x":
        axis.set_major_locator(matplotlib.ticker.MaxNLocator(2))
