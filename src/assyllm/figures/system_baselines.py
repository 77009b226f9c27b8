"""Accuracy, its course over time, and time against the system-level baselines (paper figure 16, table 5)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import algorithm_baselines, style
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("accuracy", "rounds", "resources", "paper")
SHOWN = ("ft_practical", "ft_oracle", "recomputation", "swapping", "qlora_recomputation", "assyllm_paper", "assyllm")


def data(tables: Tables) -> pd.DataFrame:
    """The rows of :mod:`algorithm_baselines` for these methods."""
    return algorithm_baselines.rows_of(tables, SHOWN)


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """As :mod:`algorithm_baselines`."""
    return algorithm_baselines.panels(
        df, look, "As algorithm_baselines, against methods that save memory by computing or reading more. "
        "Recomputation and swapping have full fine-tuning's gradients, so its accuracy, later. QLoRA + recomputation "
        f"is not in the paper. Bottom: time {style.UNTIL}. Stars: the paper (7B models, real tasks).",
    )  # fmt: skip
