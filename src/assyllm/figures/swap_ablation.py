"""What pre-loading, pre-swapping and the plan bring: time against swaps, bytes read by policy (paper figure 21)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from assyllm.figures import style
from assyllm.figures.swap_timeline import PIPELINES
from assyllm.figures.tables import Tables
from assyllm.params import Figures

READS = ("swap_ablation", "paper")
LOOKS = {
    "default": ("#999999", "o"),
    "preload": ("#56B4E9", "s"),
    "preload_preswap": ("#0072B2", "D"),
    "plan_driven": ("#D55E00", "v"),
}
PAPER = ("time_saved_by_preload", "time_saved_by_preswap_on_top")
HATCHES = ("", "//", "", "..", "xx", "")  # told apart in grey, in the policies' order
POLICIES = {
    "plan": ("plan", "#D55E00"),
    "plan_window": ("plan, window of half the pool", "#E69F00"),
    "lru_correlation": ("LRU + correlation (paper's)", "#0072B2"),
    "lru": ("LRU", "#56B4E9"),
    "mru": ("MRU", "#009E73"),
    "random": ("random", "#999999"),
}


def data(tables: Tables) -> pd.DataFrame:
    """Times as measured; bytes read (candidate order) over the least possible, mean over tasks; the paper's savings."""
    df = tables.swap_ablation
    time = df[df["what"] == "time"].assign(value=lambda d: d["seconds"].astype(float))
    time = time.assign(limit=time[["compute_seconds", "read_seconds"]].astype(float).max(axis=1))
    reads = df[(df["what"] == "reads") & (df["order"] == "candidate")]
    reads = reads.assign(value=reads["bytes"].astype(float) / reads["least_bytes"].astype(float))
    reads = reads.groupby(["what", "budget_share", "policy", "source"], as_index=False)["value"].mean()
    columns = ["what", "pipeline", "policy", "budget_share", "passes", "swaps", "value", "limit", "source"]
    paper = tables.paper[tables.paper["metric"].isin(PAPER)]
    paper = paper[["metric", "value"]].rename(columns={"metric": "pipeline"}).assign(what="paper", source="paper")
    return pd.concat([time, reads, paper], ignore_index=True).reindex(columns=columns)


def saved(df: pd.DataFrame) -> tuple[float, float]:
    """Percent of the default pipeline's time that pre-loading saves, and of what is left that pre-swapping saves."""
    last = df[df["what"] == "time"].sort_values("passes").groupby("pipeline")["value"].last()
    preload = 100 * (1 - last["preload"] / last["default"])
    return preload, 100 * (1 - last["preload_preswap"] / last["preload"])


def draw(df: pd.DataFrame, look: Figures) -> Figure:
    """Left: local time against swaps. Right: bytes read over the least possible, by policy and budget."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(look.width_inches, look.width_inches * 0.42), layout="constrained"
    )
    time, reads = df[df["what"] == "time"], df[df["what"] == "reads"]
    for name, label in PIPELINES.items():
        mine = time[time["pipeline"] == name].sort_values("passes")
        colour, marker = LOOKS[name]
        left.plot(mine["swaps"].astype(float), mine["value"], color=colour, marker=marker, label=label)
    limit = time[time["pipeline"] == "default"].sort_values("passes")
    left.plot(limit["swaps"].astype(float), limit["limit"], color="black", ls="--", lw=1, label="max(compute, read)")
    left.set_xlabel("layers swapped in")
    left.set_ylabel("local time, s")
    left.set_ylim(0, 1.6 * time["value"].max())  # room for the legend
    left.legend(frameon=False, loc="upper left")
    reads = reads.assign(budget_share=reads["budget_share"].astype(float))
    shares = sorted(reads["budget_share"].unique())
    for i, (policy, (label, colour)) in enumerate(POLICIES.items()):
        mine = reads[reads["policy"] == policy].set_index("budget_share")["value"]
        places = [j + (i - (len(POLICIES) - 1) / 2) * 0.13 for j in range(len(shares))]
        heights = [mine.get(share, float("nan")) for share in shares]
        right.bar(places, heights, 0.12, color=colour, label=label, hatch=HATCHES[i], edgecolor="white", lw=0)
    right.axhline(1, color="black", lw=0.8, ls="--")
    right.set_xticks(range(len(shares)), [f"{100 * share:g} %" for share in shares])
    right.set_xlabel("budget, share of the pool's bytes")
    right.set_ylabel("bytes read / least possible")
    right.grid(axis="x", visible=False)
    right.set_ylim(0, 1.75 * reads["value"].max())  # room for the legend
    right.legend(frameon=False, loc="upper left")
    preload, preswap = saved(df)
    paper = df[df["what"] == "paper"].set_index("pipeline")["value"].astype(float)
    text = (
        f"Left: wall times of one run; pre-loading saves {preload:z.0f} % and pre-swapping {preswap:z.0f} % of the "
        f"rest (the paper: {paper[PAPER[0]]:g} % and {paper[PAPER[1]]:g} %; overlap alone saves at most 50 % in all). "
        "Right: the search's own walk "
        "on one device, bytes at the models' true shapes, mean over tasks; the least is a lower bound."
    )
    style.caption(figure, df, text, scale="random weights on a throttled storage (left), true shapes (right)")
    return figure
