"""One round of the search, step by step (paper figure 7)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import diagram, style
from assyllm.figures.diagram import Arrow, Box
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ()
BOXES = (
    Box("server", "Server", 0, 0, 35, 52, "frame"),
    Box("device", "A device, one of the round's cohort", 45, 0, 55, 52, "frame"),
    Box("beam", "Chains so far\nthe beam: a few assembled\nmodels, as block ids", 6, 36, 27, 11, "server"),
    Box("vote", "Vote\nweighted by compatibility\nand examples, per chain", 6, 20, 27, 11, "server"),
    Box("stack", "Stack and join\nK winners a chain; adapters\nfrom sums; ended ones leave", 6, 4, 27, 11, "server"),
    Box("pool", "Pool on disk\nquantized blocks,\nsent once", 47, 36, 23, 11, "data"),
    Box("walk", "Block Swapper\nblocks in and out\nunder a budget", 75, 36, 23, 11, "device"),
    Box("both", "One batch twice\nchain + candidate: X\nits own model: Y", 75, 20, 23, 11, "device"),
    Box("score", "Block Comparator\nw CKA(X, Y) + (1 - w) COR;\nK best candidates", 47, 20, 23, 11, "device"),
    Box("fit", "Elastic Adapter\nsums of states, for joins\nof unlike blocks", 47, 4, 23, 11, "device"),
    Box("data", "Private data\nstays here", 75, 4, 23, 11, "data"),
)
ARROWS = (
    Arrow("pool.r", "walk.l"),
    Arrow("walk.b", "both.t"),
    Arrow("data.t", "both.b"),
    Arrow("both.l", "score.r"),
    Arrow("score.b", "fit.t"),
    Arrow("score.l", "vote.r", "votes\n(bytes)"),
    Arrow("fit.l", "stack.r", "secure\nsum"),
    Arrow("vote.b", "stack.t"),
    Arrow("stack.l", "beam.l", bend=-0.13),
    Arrow("beam.r", "pool.l", "ids"),
)


def data(tables: Tables) -> pd.DataFrame:
    """The boxes and arrows."""
    return diagram.table(BOXES, ARROWS)


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """The diagram."""
    figure = diagram.draw(df, look, 52)
    style.caption(
        figure, df, "One round of the search: devices only pass forward. A chain is finished when a terminating block "
        "ends it or it is as deep as it may be. assyllm_paper scores as drawn; assyllm asks some cohorts once what all "
        "blocks tell a head of the labels, by sums alone, and joins nothing. assyllm_paper then trains its adapters on "
        "the devices, with backward passes (not drawn).", scale="none, a diagram",
    )  # fmt: skip
    return figure
