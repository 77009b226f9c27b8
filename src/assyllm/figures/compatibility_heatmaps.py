"""CKA of assembled chains with their last block's own model, and which score foretells accuracy (paper figure 10)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("compatibility_heatmaps",)
SCORES = {
    "cka": "CKA", "cor": "COR", "compatibility": "compatibility",
    "reported_compatibility": "the search's compatibility",
}  # fmt: skip
RESAMPLES = 500
GREYS = {"boolq": "#333333", "piqa": "#888888", "openbookqa": "#CCCCCC"}


def data(tables: Tables) -> pd.DataFrame:
    """Cells of the heatmaps, scores of every finished model, and each score's rank correlation with accuracy.

    Models with trained joins are left out of the correlation: the search trains those of its highest compatibility (and
    models that begin alike share them), which says nothing of what the score foretells.
    """
    df = tables.compatibility_heatmaps
    models = df[df["what"] == "model"]
    models = models[models["trained_joins"].astype(float) == 0]
    rows = []
    for (world, task), group in models.groupby(["world", "task"]):
        values = group[[*SCORES, "accuracy"]].astype(float)
        ranks = values.rank()
        for score in SCORES:
            low, high = _spread(values[score].to_numpy(), values["accuracy"].to_numpy())
            rows.append(
                dict.fromkeys(df.columns, "")
                | {"what": "rank correlation", "world": world, "task": task, "model": f"{len(group)} models",
                   "row": score, "cka": ranks[score].corr(ranks["accuracy"]), "low": low,
                   "high": high, "source": "measured"}
            )  # fmt: skip
    return pd.concat([df, pd.DataFrame(rows)], ignore_index=True)


def _spread(score: np.ndarray, accuracy: np.ndarray) -> tuple[float, float]:
    """95 % interval of a rank correlation over resampled models (percentiles; draws without spread left out)."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        index = draw.integers(len(score), size=len(score))
        a, b = (pd.Series(values[index]).rank().to_numpy() for values in (score, accuracy))
        if a.std() and b.std():
            found.append(np.corrcoef(a, b)[0, 1])
    low, high = np.quantile(found, [0.025, 0.975]) if found else (np.nan, np.nan)
    return float(low), float(high)


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """Top: a heatmap a candidate. Bottom: rank correlation of the scores with final accuracy, by task."""
    models = df[(df["what"] == "model") & (df["shown"].astype(str) != "")].sort_values("shown")
    figure = plt.figure(figsize=(look.width_inches, look.width_inches * 0.58), layout="constrained")
    parts = np.asarray(figure.subfigures(2, 1, height_ratios=[1.6, 1]))
    top, bottom = parts[0], parts[1]
    axes = top.subplots(1, len(models), squeeze=False)[0]
    for ax, row in zip(axes, models.itertuples(), strict=True):
        cells = df[(df["what"] == "cell") & (df["shown"] == row.shown)].astype(
            {"row": int, "column": int, "cka": float}
        )
        grid = cells.pivot(index="row", columns="column", values="cka")
        ax.imshow(grid, vmin=0, vmax=1, cmap="Greys", origin="lower", aspect="auto")
        for (i, j), value in np.ndenumerate(grid.to_numpy()):
            if np.isfinite(value):
                ax.text(j, i, f"{value:.1f}".lstrip("0") if value < 0.95 else "1", ha="center", va="center", fontsize=7,
                        color="white" if value > 0.5 else "black")  # fmt: skip
        ax.set_xticks(range(grid.shape[1]), [str(c) for c in grid.columns])
        ax.set_yticks(range(grid.shape[0]), _names(row.model, grid.shape[0]))
        ax.grid(visible=False)
        score = f"CKA {float(row.cka):.2f}, COR {float(row.cor):.2f}"
        ax.set_title(f"{row.candidate}\n{score}\naccuracy {100 * float(row.accuracy):.0f} %", fontsize=7)
        ax.set_xlabel(f"layers of {row.candidate.split(':')[0]}")
    axes[0].set_ylabel("layers of the chain")
    _ranks(bottom.subplots(), df[df["what"] == "rank correlation"])
    shown = models["task"].iloc[0]
    counts = df[df["what"] == "rank correlation"].drop_duplicates("task")
    total = sum(int(text.split()[0]) for text in counts["model"])
    style.caption(
        figure, df, f"Top: models that the search finished on {style.TASKS.get(shown, shown)}, joined anew by linear "
        "adapters fitted to public text; CKA and COR above are means over a model's joins, accuracy is the run's. "
        "A title names the chain's last block, opt:3-4 what follows opt's layer 3 up to its layer 4. "
        f"Bottom: rank correlation of each score with final accuracy over the {total} finished models of one run whose "
        "joins were not trained, 95 % interval over models; the search's own score was taken on the clients' data as "
        "the chain grew.",
    )  # fmt: skip
    return figure


def _names(model: str, layers: int) -> list[str]:
    """A chain's layers, each named by its block where a block has one layer, else by number."""
    blocks = model.split()
    parts = [tuple(map(int, block.split(":")[1].split("-"))) for block in blocks]
    names = [
        f"{block.split(':')[0]} {layer + 1}"
        for block, (first, last) in zip(blocks, parts, strict=True)
        for layer in range(first, last)
    ]
    return names if len(names) == layers else [str(i + 1) for i in range(layers)]


def _ranks(ax: plt.Axes, rows: pd.DataFrame) -> None:
    tasks = style.tasks(rows["task"])
    for i, task in enumerate(tasks):
        mine = rows[rows["task"] == task].set_index("row")[["cka", "low", "high"]].astype(float).loc[[*SCORES]]
        places = [y + (i - (len(tasks) - 1) / 2) * 0.75 / len(tasks) for y in range(len(SCORES))]
        error = style.error(mine["cka"], mine["low"], mine["high"])
        ax.barh(places, mine["cka"], 0.69 / len(tasks), xerr=error, error_kw={"elinewidth": 0.8, "ecolor": "#D55E00"},
                color=GREYS.get(task, "white"), edgecolor="black", lw=0.4,
                label=style.TASKS.get(task, task))  # fmt: skip
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(range(len(SCORES)), list(SCORES.values()))
    ax.set_ylim(len(SCORES) - 0.5, -0.5)
    ax.set_xlim(-1, 1)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("rank correlation with final accuracy")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1)
