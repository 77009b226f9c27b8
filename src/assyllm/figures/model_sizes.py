"""Size of each model of the pool and of its blocks, at 16 bit and at the paper's mix (paper table 3)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("model_sizes", "paper")


def data(tables: Tables) -> pd.DataFrame:
    """One row per model: its size (GB) at 16 bit, the paper's value, the mix, and its blocks' sizes (MB)."""
    sizes, paper = tables.model_sizes, tables.paper
    known = paper[paper["metric"] == "model_size"]
    rows = []
    for model, parts in sizes.groupby("model", sort=False):
        whole = parts[parts["part"] == "model"].iloc[0]
        blocks = parts[parts["part"].str.startswith("block")]
        value = known[known["method"] == whole["stands_for"]]["value"]
        rows.append(
            {
                "model": model, "stands_for": whole["stands_for"], "fp16_gb": whole["fp16_gb"],
                "paper_gb": float(value.iloc[0]) if len(value) else float("nan"), "mixed_gb": whole["mixed_gb"],
                "layers": " ".join(map(str, blocks["layers"])),
                "blocks_fp16_mb": " ".join(f"{1000 * gb:.0f}" for gb in blocks["fp16_gb"]),
                "blocks_mixed_mb": " ".join(f"{1000 * gb:.0f}" for gb in blocks["mixed_gb"]), "source": "modelled",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """A table: models, their size, ours and the paper's, and their blocks."""
    figure, ax = plt.subplots(figsize=(look.width_inches, 0.24 * (len(df) + 2)), layout="constrained")
    ax.axis("off")
    cells = [
        [
            style.model_label(row.stands_for), f"{row.fp16_gb:.2f}", f"{row.paper_gb:g}", f"{row.mixed_gb:.2f}",
            row.layers.replace(" ", "/"), row.blocks_fp16_mb.replace(" ", " / "),
        ]
        for row in df.itertuples()
    ]  # fmt: skip
    total = ["pool", f"{df['fp16_gb'].sum():.2f}", f"{df['paper_gb'].sum():.2f}", f"{df['mixed_gb'].sum():.2f}",
             str(sum(len(layers.split()) for layers in df["layers"])) + " blocks", ""]  # fmt: skip
    head = ["model", "16 bit, GB", "paper, GB", "mix, GB", "layers", "its blocks at 16 bit, MB"]
    table = ax.table([*cells, total], colLabels=head, loc="center", cellLoc="left", edges="horizontal",
                     colWidths=[0.15, 0.12, 0.12, 0.1, 0.13, 0.38])  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(look.font_points)
    for (row, _), cell in table.get_celld().items():
        cell.set_linewidth(0.4)
        cell.PAD = 0.03
        cell.set_text_props(ha="left")
        if row in (0, len(df) + 1):
            cell.set_text_props(weight="bold")
    text = "Size of the pool's models at their true shapes, heads included, and of the blocks that they are cut into."
    style.caption(figure, df, text + " mix: INT4 and INT8 rows at 4.77 bits a weight, embeddings at INT8.")
    return figure
