"""Accuracy against the system-level baselines, three tasks, and the curves over rounds (paper figure 16, table 5)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import algorithm_baselines
from assyllm.figures.tables import Tables
from assyllm.params import Figures

SHOWN = ("ft_practical", "ft_oracle", "recomputation", "swapping", "qlora_recomputation", "assyllm_paper", "assyllm")


def data(tables: Tables) -> pd.DataFrame:
    """Final accuracies with intervals, the paper's beside them, and mean test curves over rounds (percent)."""
    rows = algorithm_baselines.accuracy_rows(tables)
    return rows[rows["method"].isin(SHOWN)].reset_index(drop=True)


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """As :mod:`algorithm_baselines`."""
    return algorithm_baselines.draw(df, look)
