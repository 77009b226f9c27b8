"""The system: what is made once, what the server does, what a device does (paper figure 8)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import diagram, style
from assyllm.figures.diagram import Arrow, Box
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("model_sizes",)


def data(tables: Tables) -> pd.DataFrame:
    """The boxes and arrows; the pool's counts come from the table of model sizes."""
    sizes = tables.model_sizes
    models = int((sizes["part"] == "model").sum())
    blocks = int(sizes["part"].str.startswith("block").sum())
    boxes = (
        Box("once", "Once, offline", 0, 0, 28, 50, "frame"),
        Box("server", "Server, federated/ and assembly/", 34, 28, 66, 22, "frame"),
        Box("device", "Device", 34, 0, 66, 22, "frame"),
        Box("zoo", f"Pre-trained models\n{models} models\nzoo/", 2, 34, 24, 11, "data"),
        Box("split", "Blocks\nstart, middle, end\nblocks/", 2, 19, 24, 11, "offline"),
        Box("quant", f"Block Quantizer\nmixed widths; {blocks} blocks\nquantizer/", 2, 4, 24, 11, "offline"),
        Box("search", "Search\nchains, or a survey", 36, 31, 18, 10, "server"),
        Box("vote", "Votes\nrobust, visible", 58, 31, 18, 10, "server"),
        Box("head", "Joins and head\nfrom sums", 80, 31, 18, 10, "server"),
        Box("swapper", "Block Swapper\nplan, read, evict\nswapper/", 36, 3, 18, 12, "device"),
        Box("comparator", "Block Comparator\nCKA and COR\ncomparator/", 58, 3, 18, 12, "device"),
        Box("adapter", "Elastic Adapter\nof unlike blocks\nadapter/", 80, 3, 18, 12, "device"),
    )
    arrows = (
        Arrow("zoo.b", "split.t"),
        Arrow("split.b", "quant.t"),
        Arrow("quant.r", "swapper.l", "pool"),
        Arrow("search.b", "swapper.t", "block ids"),
        Arrow("swapper.r", "comparator.l"),
        Arrow("comparator.r", "adapter.l"),
        Arrow("comparator.t", "vote.b", "K best ids, scores"),
        Arrow("adapter.t", "head.b", "secure sum"),
        Arrow("vote.l", "search.r"),
        Arrow("head.t", "search.t", bend=0.16),
    )
    return diagram.table(boxes, arrows)


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """The diagram."""
    figure = diagram.draw(df, look, 50)
    style.caption(
        figure, df, "Rooms of the source tree and what passes between them. What comes out is a chain of blocks with "
        "adapters and a head, which assyllm predict loads. Blocks are counted at the models' true shapes.",
        scale="none, a diagram",
    )  # fmt: skip
    return figure
