"""What the Elastic Adapter adds to a projection alone (paper figures 11, 20b)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import comparator_ablation
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("ablations", "runs", "paper")
BARS = {
    ("assyllm_paper", "join_linear"): "paper's rule,\nprojection",
    ("assyllm_paper", "join_projection"): "projection\ntrained",
    ("assyllm_paper", "join_untrained"): "untrained\nattention",
    ("assyllm_paper", "join_local"): "attention,\nlocal loss",
    ("assyllm_paper", "base"): "attention,\nend to end",
    ("assyllm_paper", "join_fixed_attention"): "fixed\nattention",
    ("assyllm", "grown_projection"): "by places,\nprojection",
    ("assyllm", "grown_adapter"): "by places,\nattention",
    ("assyllm", "base"): "ours,\nno join",
}
AGAINST = {
    ("assyllm_paper", "base"): "join_projection",  # what is trained as long, without attention
    ("assyllm", "base"): "",  # which is no matter of joins alone
}
PLAIN = {"assyllm_paper": "join_linear", "assyllm": "grown_projection"}  # the closed-form projection alone


def data(tables: Tables) -> pd.DataFrame:
    """Test accuracy in percent by adapter and task; ``gain`` is against projection only, ``paper_gain`` the paper's.

    Trained attention is held against the projection trained as long (:data:`AGAINST`), what nobody trained against the
    closed-form one.
    """
    a = tables.ablations
    paper = tables.paper[tables.paper["metric"] == "accuracy_gain_over_projection"].set_index("dataset")["value"]
    rows = []
    for r in a.itertuples():
        if (r.method, r.setting) not in BARS:
            continue
        against = AGAINST.get((r.method, r.setting), PLAIN[r.method])
        plain = a[(a["method"] == r.method) & (a["setting"] == against) & (a["task"] == r.task)]["mean"]
        ours = r.method == "assyllm_paper" and r.setting == "base"
        rows.append(
            {
                "task": r.task, "world": r.world, "method": r.method, "setting": r.setting, "value": 100 * r.mean,
                "low": 100 * r.low, "high": 100 * r.high, "gain": 100 * (r.mean - plain.iloc[0]) if len(plain) else "",
                "paper_gain": float(paper[r.task]) if ours and r.task in paper.index else "", "runs": r.runs,
                "source": r.source,
            }
        )  # fmt: skip
    return pd.DataFrame(rows).assign(zoos=tables.zoo_number())


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """A panel a task, a bar an adapter; dashed: projection only with the paper's rule."""
    told = df[(df["paper_gain"] != "") & (df["gain"] != "")]
    gains = "; ".join(f"{r.task} {r.gain:+.1f} (paper {r.paper_gain:+.1f})" for r in told.itertuples())
    return comparator_ablation.bars(
        df, look, BARS, "How unlike blocks are joined. Trained attention against the projection trained as long, "
        f"points: {gains}. Dashed: closed-form projection with the paper's rule.", ("assyllm_paper", "join_linear"),
    )  # fmt: skip
