"""The tables that figures read, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from assyllm.artifacts import ArtifactError
from assyllm.cost.devices import device
from assyllm.results import FIGURE_TABLES, TABLES, RunKey

# the method that paper.csv calls so -> ours that does what the paper describes
OF_PAPER = {"assyllm": "assyllm_paper"}


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; `snakemake results` makes it")
    try:
        return pd.read_csv(path, keep_default_na=False, na_values={"value": [""]}, dtype={"setting": str})
    except ValueError as error:  # pandas' own errors are ones too: not UTF-8, empty, rows of unlike length
        raise ArtifactError(f"{path}: not readable as a table ({str(error).strip()})") from None


class Tables:
    """The result tables of one study, each an attribute; text columns stay text."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def __getattr__(self, table: str) -> pd.DataFrame:
        """A table by its name (:mod:`assyllm.results` says what it holds), read when first asked for.

        Raises:
            AttributeError: there is no table of that name.
            ArtifactError: it is not there, or no table.
        """
        if table not in (*TABLES, *FIGURE_TABLES):
            raise AttributeError(f"no result table is called {table!r}")
        found = self.__dict__[table] = _read(self.folder / f"{table}.csv")
        return found

    def with_step(self, df: pd.DataFrame, table: str = "cost") -> pd.DataFrame:
        """The rows, modelled ones with what the steps of ``table`` are of: batch, tokens, optimizer, device."""
        modelled = (df.filter(regex="source$") == "modelled").any(axis=1).to_numpy()
        told = [column for column in ("batch", "tokens", "optimizer", "device") if column in getattr(self, table)]
        for column in told if len(df) and len(getattr(self, table)) else ():
            value = getattr(self, table)[column].iloc[0]
            value = device(value).label if column == "device" else value
            df = df.assign(**{column: np.where(modelled, str(value), "")})
        return df

    def zoo_number(self) -> int:
        """On how many zoos the study's runs are."""
        return len({RunKey.of(run).zoo for run in self.runs["run_id"]})

    def paper_accuracy(self) -> pd.DataFrame:
        """The paper's accuracies (percent) by task and method, under our names (:data:`OF_PAPER`)."""
        df = self.paper
        df = df[(df["metric"] == "accuracy") & df["item"].isin(["table4", "table5"])]
        df = df.assign(method=df["method"].replace(OF_PAPER))
        return df.rename(columns={"dataset": "task"})[["task", "method", "value"]]
