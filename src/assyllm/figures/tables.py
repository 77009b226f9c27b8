"""The tables that figures read, and nothing else."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from assyllm.artifacts import ArtifactError
from assyllm.cost.devices import device


class Tables:
    """The result tables of one study, read when asked for; text columns stay text."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def _read(self, name: str) -> pd.DataFrame:
        path = self.folder / f"{name}.csv"
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; `snakemake results` makes it")
        try:
            return pd.read_csv(path, keep_default_na=False, na_values={"value": [""]}, dtype={"setting": str})
        except ValueError as error:  # pandas' own errors are ones too: not UTF-8, empty, rows of unlike length
            raise ArtifactError(f"{path}: not readable as a table ({str(error).strip()})") from None

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """Test accuracy by round."""
        return self._read("rounds")

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run."""
        return self._read("runs")

    @cached_property
    def accuracy(self) -> pd.DataFrame:
        """Mean accuracy and interval per world, task, method and setting."""
        return self._read("accuracy")

    @cached_property
    def ablations(self) -> pd.DataFrame:
        """Accuracy by setting, and its paired difference to the base setting."""
        return self._read("ablations")

    @cached_property
    def non_iid(self) -> pd.DataFrame:
        """Accuracy by method and ``partition.alpha``, and what is lost where clients are unequal."""
        return self._read("non_iid")

    @cached_property
    def tradeoff(self) -> pd.DataFrame:
        """Accuracy and a client's energy by method and by way of selecting blocks."""
        return self._read("tradeoff")

    @cached_property
    def models(self) -> pd.DataFrame:
        """Every assembled model."""
        return self._read("models")

    @cached_property
    def cost(self) -> pd.DataFrame:
        """Peak memory and participation per method, model and memory class."""
        return self._read("cost")

    @cached_property
    def swap_timeline(self) -> pd.DataFrame:
        """Events of the swapper's pipelines."""
        return self._read("swap_timeline")

    @cached_property
    def swap_ablation(self) -> pd.DataFrame:
        """Times of the swapper's pipelines, reads of its policies."""
        return self._read("swap_ablation")

    @cached_property
    def feature_differences(self) -> pd.DataFrame:
        """Layers of pairs of models in a plane, and their CKA."""
        return self._read("feature_differences")

    @cached_property
    def compatibility_heatmaps(self) -> pd.DataFrame:
        """Scores of finished models, and CKA of some chains' layers with their last block's own model."""
        return self._read("compatibility_heatmaps")

    @cached_property
    def quantizer(self) -> pd.DataFrame:
        """Pool sizes and accuracy against bytes."""
        return self._read("quantizer")

    @cached_property
    def model_sizes(self) -> pd.DataFrame:
        """Size of each model of the pool and of its blocks at true shapes."""
        return self._read("model_sizes")

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Sensitivity of peak memory and step time at the shape of Llama-7B, one row per method and point."""
        return self._read("curves")

    @cached_property
    def resources(self) -> pd.DataFrame:
        """Hours, energy and traffic to a method's accuracy, one row per method and task."""
        return self._read("resources")

    @cached_property
    def claims(self) -> pd.DataFrame:
        """The paper's claims beside ours."""
        return self._read("claims")

    @cached_property
    def paper(self) -> pd.DataFrame:
        """The paper's published values."""
        return self._read("paper")

    def with_step(self, df: pd.DataFrame, table: str = "cost") -> pd.DataFrame:
        """The rows, modelled ones with what the steps of ``table`` are of: batch, tokens, optimizer, device."""
        modelled = (df.filter(regex="source$") == "modelled").any(axis=1).to_numpy()
        told = [column for column in ("batch", "tokens", "optimizer", "device") if column in getattr(self, table)]
        for column in told if len(df) and len(getattr(self, table)) else ():
            value = getattr(self, table)[column].iloc[0]
            value = device(value).label if column == "device" else value
            df = df.assign(**{column: np.where(modelled, str(value), "")})
        return df

    def paper_accuracy(self) -> pd.DataFrame:
        """The paper's accuracies (percent) by task and method; ours-by-name ``assyllm`` is ``assyllm_paper``."""
        df = self.paper
        df = df[(df["metric"] == "accuracy") & df["item"].isin(["table4", "table5"])]
        df = df.assign(method=df["method"].replace({"assyllm": "assyllm_paper"}))
        return df.rename(columns={"dataset": "task"})[["task", "method", "value"]]
