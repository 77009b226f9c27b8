"""Every claim that rests on results alone: where its number comes from, and why it differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from assyllm.claims.table import METHODS, Claims, Interval, Rows
from assyllm.params import PUBLISHED, is_base

PEFT = ("lora", "qlora", "fedadapter")
TINY = "tiny models pre-trained here on a generated world whose facts are spread over the models"
SMALL = "small models on the real tasks; a check that the path runs"
ROUNDS = (
    "rounds (to within half a point of the smoothed best on dev) and walks measured at tiny scale x steps modelled at "
    "true shapes; FedAdapter at its deepest"
)
MINIBATCHES = (
    "ours steps after every minibatch: adding several up first, as the simulator does, takes 13 GB more, and 90 % are "
    "excluded"
)
WALKED = (
    "; a chain reads a row a choice, 1.98 times a whole decoder's tokens; unpacking taken as fused, as on a GPU (77 to "
    "140 % of the modelled time, benchmarks/cost_against_gpu.csv)"
)


def claims_table(
    accuracy: Rows, differences: Rows, models: Rows, cost: Rows, paper: Rows, size: str, resources: Rows = (),
    sizes: Rows = (), ablations: Rows = (), repetitions: Sequence[str] = (), non_iid: Rows = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """Every claim that rests on results alone, a row each (:func:`assyllm.claims.shown.swap_claims` are wall times).

    Args:
        repetitions: names of the base setting's, as ``zoo0_seed1``.
    """
    accuracy, cost, paper, sizes = list(accuracy), list(cost), list(paper), list(sizes)
    worlds = {row["world"] for row in accuracy}
    generated = worlds == {"embedded"}
    runs = max((int(row["runs"]) for row in accuracy), default=0)
    scale = f"{'generated world' if generated else 'real tasks'}, {runs} run(s), {size} study"
    table = Claims(paper, scale, "embedded" if generated else "", size, repetitions)
    _accuracy(table, list(differences), TINY if generated else SMALL)
    _clients(table, cost)
    _memory(table, cost)
    _resources(table, list(resources), list(models))
    _search(table, list(models))
    _ablations(table, list(ablations))
    _non_iid(table, list(non_iid))
    _quantizer(table, sizes)
    return table.rows


def _accuracy(table: Claims, differences: list[Mapping[str, Any]], why: str) -> None:
    gaps = {(d["task"], d["method"], d["versus"]): d for d in differences}
    pairs = [("FT-practical loses to FT-oracle", "ft_practical", "ft_oracle")]
    pairs += [
        (f"AssyLLM beats {name}", method, versus)
        for method in METHODS
        for name, versus in (("FT-practical", "ft_practical"), ("FT-oracle", "ft_oracle"))
    ]
    for label, method, versus in pairs:
        for task in PUBLISHED:
            theirs = "assyllm" if method in METHODS else method
            expected = table.paper("accuracy", task, theirs) - table.paper("accuracy", task, versus)
            gap = gaps.get((task, method, versus))
            ours, interval = _points(gap, "difference", "low", "high") if gap else (None, None)
            table.add(
                f"{label}, {task}", method, expected, ours, why, table.command(method, versus),
                unit="points", source="measured", interval=interval,
            )  # fmt: skip


def _points(row: Mapping[str, Any], value: str, low: str, high: str, sign: int = 1) -> tuple[float, Interval]:
    """Columns of a row as points and their interval; of a loss (``sign`` -1) ``low`` is the column of the upper end."""
    ours, below, above = (sign * 100 * float(row[column]) for column in (value, low, high))
    return ours, (below, above)


def _clients(table: Claims, cost: list[Mapping[str, Any]]) -> None:
    def share(method: str, model: str, takes_part: bool) -> float | None:
        classes = {c["memory_gb"]: c for c in cost if (c["method"], c["stands_for"]) == (method, model)}
        found = sum(float(c["share"]) for c in classes.values() if int(c["participates"]) == takes_part)
        return 100 * found if classes else None

    adapters = {str(c["method"]): c for c in cost}
    for name, model, why in (
        ("llama", "llama-7b", "the slides' figure; the text says 85"),
        ("opt", "opt-6.7b", f"the slides' figure; the text says 60; {MINIBATCHES}"),
    ):  # fmt: skip
        table.add(
            f"Clients excluded from full fine-tuning, {model}", "ft_practical",
            table.paper(f"excluded_clients_{name}", "boolq", "ft_practical"), share("ft_practical", model, False),
            why, _cost(adapters.get("ft_practical"), model), kind="near",
        )  # fmt: skip
    for method, why in (
        ("qlora", "activations of batch 16 x 256 stay in ours; 70 % needs at most 8 GB, the paper's -79 % is 9.5 GB"),
        ("fwdllm", "ours keeps all weights in memory, which the paper's 3.8 GB cannot hold even at INT8"),
    ):
        table.add(
            f"Clients that can take part, {method}", method, table.paper("participation", "boolq", method),
            share(method, "llama-7b", True), why, _cost(adapters.get(method)), kind="near",
        )  # fmt: skip


def _cost(row: Mapping[str, Any] | None, model: str = "llama-7b") -> str:
    """The command that estimates the step that a row of a cost table is of."""
    if row is None:
        return ""
    shape = f"--batch {row['batch']} --length {row['tokens']} --device {row['device']}"
    trained = f" --targets {row['targets']} --rank {row['rank']}" if row["targets"] else ""
    return f"assyllm estimate --model {model} --method {row['method']} {shape}{trained}"


def _memory(table: Claims, cost: list[Mapping[str, Any]]) -> None:
    peaks = {(c["method"], "pool" if c["model"] == "pool" else c["stands_for"]): float(c["peak_gb"]) for c in cost}
    full = peaks.get(("ft_practical", "llama-7b"))
    adapters = {str(c["method"]): c for c in cost}
    for method in PEFT:
        theirs = table.paper("memory_reduction_vs_full_ft", "boolq", method)
        table.add(
            f"Peak memory below full fine-tuning, {method}", method, theirs,
            less(peaks.get((method, "llama-7b")), full), "activations of batch 16 x 256 stay, whatever is trained",
            _cost(adapters.get(method)),
        )  # fmt: skip
    lightest = min((peaks[m, "llama-7b"] for m in PEFT if (m, "llama-7b") in peaks), default=None)
    for method in METHODS:
        mine = peaks.get((method, "pool"))
        why = "scoring with two parts of the pool in memory at its precision, each behind an adapter at most"
        why += (
            ", or training its adapters layer by layer, whichever is more"
            if method == METHODS[0]
            else " (a survey has none)"
        )
        for claim, metric, base in (
            ("Peak memory below full fine-tuning", "memory_reduction_vs_full_ft", full),
            ("Peak memory below the lightest PEFT method", "memory_reduction_vs_peft", lightest),
        ):
            command = f"snakemake --cores 2 data/cost/base/{{{method},ft_practical,qlora}}.csv"
            table.add(claim, method, table.paper(metric), less(mine, base), why, command)


def less(part: float | None, whole: float | None) -> float | None:
    """By how many percent ``part`` is below ``whole``."""
    return 100 * (1 - part / whole) if part is not None and whole else None


def _resources(table: Claims, resources: list[Mapping[str, Any]], models: list[Mapping[str, Any]]) -> None:
    chains = [m for m in models if (m["task"], m["setting"], str(m["reported"])) == ("boolq", "", "1")]
    hours, energy, traffic = (
        {r["method"]: float(r[what]) for r in resources if r["task"] == "boolq"}
        for what in ("hours", "energy_kj", "traffic_gb")
    )
    for method in METHODS:
        mine = hours.get(method)
        found = {name for m in chains if m["method"] == method for name in str(m["families"]).split()}
        of = f"; its chains here are of {', '.join(sorted(found))}" if found else ""
        for name, versus, theirs in (
            ("FT-practical", "ft_practical", table.paper("speedup", "boolq")),
            ("swapping", "swapping", table.paper("speedup_over_swapping", "boolq")),
        ):
            ours = hours[versus] / mine if mine and versus in hours else None
            table.add(
                f"Speed-up over {name}, boolq", method, theirs, ours, ROUNDS + WALKED + of,
                table.command(method, versus), unit="x", kind="factor",
            )  # fmt: skip
        for name, column, metric, but in (
            ("Energy", energy, "energy_reduction", WALKED), ("Traffic", traffic, "traffic_reduction", ""),
        ):  # fmt: skip
            why = ROUNDS + but + of + "; one-off download apart"
            table.add(
                f"{name} below full fine-tuning, boolq", method, table.paper(f"{metric}_vs_full_ft", "boolq"),
                less(column.get(method), column.get("ft_oracle")), why, table.command(method, "ft_oracle"),
            )  # fmt: skip
            others = [column[m] for m in (*PEFT, "fwdllm") if m in column]
            table.add(
                f"{name} below PEFT or FwdLLM, up to, boolq", method,
                table.paper(f"{metric}_vs_peft_or_bpfree_max", "boolq"),
                less(column.get(method), max(others, default=None)), why, table.command(method, *PEFT, "fwdllm"),
            )  # fmt: skip


def _search(table: Claims, models: list[Mapping[str, Any]]) -> None:
    for method in METHODS:
        counts: dict[str, int] = {}
        for m in models:
            if (m["task"], m["method"]) == ("boolq", method) and is_base(str(m["setting"])):
                counts[m["run_id"]] = counts.get(m["run_id"], 0) + 1
        mean = float(np.mean(list(counts.values()))) if counts else None
        table.add(
            "Models assembled in the search, boolq", method, table.paper("assembled_models", "boolq"), mean,
            "depends on beam, depth and when a chain may end" if method == METHODS[0] else "one survey chooses one set",
            table.command(method), unit="count", source="measured", kind="near",
        )  # fmt: skip


def _ablations(table: Claims, rows: list[Mapping[str, Any]]) -> None:
    """Claims about parts of the method: paired differences between settings."""
    command = f"snakemake --cores 2 {'ablations' if table.size == 'default' else table.size}"
    paper = METHODS[0]

    def lost(task: str, method: str, part: str) -> tuple[float | None, Interval | None]:
        """Points that the base setting is above the one that changed ``part``, most where several did."""
        found = [
            _points(r, "difference", "difference_high", "difference_low", sign=-1)
            for r in rows
            if (r["task"], r["method"]) == (task, method) and part in str(r["changed"]) and str(r["difference"]) != ""
        ]
        return max(found, default=(None, None))

    for name, method, weight in (("CKA", "cka_only", "1.0"), ("COR", "cor_only", "0.0")):
        ours, interval = lost("boolq", paper, f"comparator.cka_weight={weight}")
        why = "the paper does not say which of the two numbers is which metric's"
        table.add(
            f"{name} alone loses to the mix, boolq", paper, table.paper("accuracy_loss", "boolq", method), ours, why,
            command, unit="points", source="measured", interval=interval,
        )  # fmt: skip
    for task in PUBLISHED:
        ours, interval = lost(task, paper, 'assyllm_paper.adapter.tuned="projection"')
        untrained, _ = lost(task, paper, 'assyllm_paper.adapter.kind="linear"')
        why = "cross-attention against the projection alone, both trained end to end for as many rounds"
        why += (
            "" if untrained is None else f"; against the closed-form projection, which nobody trains, {untrained:.3g}"
        )
        table.add(
            f"Elastic Adapter beats projection only, {task}", paper,
            table.paper("accuracy_gain_over_projection", task, "elastic_adapter"), ours, why, command,
            unit="points", source="measured", interval=interval,
        )  # fmt: skip


def _non_iid(table: Claims, rows: list[Mapping[str, Any]]) -> None:
    """Claims about clients of unequal data: what a method loses to them, from the study ``non_iid``."""
    command = "snakemake --cores 2 non_iid"

    def worst(methods: Sequence[str], as_run: bool = True) -> tuple[float | None, Interval | None]:
        """Points lost, most of all values of partition.alpha and of all methods, under the base setting or any."""
        found = [
            _points(r, "drop", "drop_low", "drop_high")
            for r in rows
            if r["task"] == "boolq"
            and r["method"] in methods
            and str(r["drop"]) != ""
            and not (as_run and r["changed"])
        ]
        return max(found, default=(None, None))

    why = "the largest loss of all values of partition.alpha that were run, against equal clients (alpha = 1000)"
    whys = dict.fromkeys(METHODS, why)
    whys["assyllm"] += "; by construction: who holds an item changes who is surveyed, not what all clients' sums say"
    for method in METHODS:
        ours, interval = worst([method])
        table.add(
            "Accuracy lost to unequal clients at most, boolq", method, table.paper("noniid_accuracy_drop", "boolq"),
            ours, whys[method], command, unit="points", source="measured", interval=interval, kind="at most",
        )  # fmt: skip
    ours, interval = worst(["ft_oracle", "ft_practical", *PEFT, "fwdllm", "lora_all"], as_run=False)
    why += (
        ", and of seven methods: the largest of many favours the claim. Among them LoRA on all clients with five local "
        "epochs of AdamW, as the paper trains (settings epochs_5_*): clients that make a step a round do not drift "
        "apart"
    )
    table.add(
        "Baselines lose to unequal clients, up to, boolq", "baselines",
        table.paper("noniid_accuracy_drop", "boolq", "baselines"), ours, why, command,
        unit="points", source="measured", interval=interval,
    )  # fmt: skip


def _quantizer(table: Claims, sizes: list[Mapping[str, Any]]) -> None:
    pool = {r["precision"]: float(r["size_gb"]) for r in sizes if r["what"] == "size"}
    mix = next((size for name, size in pool.items() if name.startswith("paper's mix")), None)
    fp16, int4 = pool.get("FP16"), pool.get("INT4")
    exact = "exact bytes at true shapes, scales and embeddings included"
    command = table.command()
    for name, method in (("FP16", "assyllm_fp16"), ("INT8", "assyllm_int8"), ("INT4", "assyllm_int4")):
        table.add(
            f"Size of the pool, {name}", "quantizer", table.paper("pool_size", "boolq", method), pool.get(name),
            exact + "; the paper adds up rounded sizes", command, unit="GB", kind="equal",
        )  # fmt: skip
    table.add(
        "Pool smaller by mixed precision", "quantizer",
        table.paper("memory_reduction_vs_fp16", "boolq", "block_quantizer"), less(mix, fp16),
        "true by arithmetic: 4.77 of 16 bits; what it costs is below, at 6 bits, and in `full` at 4.8", command,
    )  # fmt: skip
    more = 100 * (mix / int4 - 1) if mix and int4 else None
    table.add(
        "Mixed pool larger than INT4 by at most", "quantizer",
        table.paper("memory_increase_vs_int4", "boolq", "block_quantizer"), more, exact, command, kind="at most",
    )  # fmt: skip
    kept = {
        r["precision"]: r for r in sizes if r["what"] == "accuracy" and str(r["refit"]) == "0" and r["task"] == "boolq"
    }
    why = "tiny pool at 6 bits a weight (groups of 32), blocks replaced and nothing fitted again"
    base, low_bits = kept.get("base"), kept.get("int4")
    columns = ("difference", "difference_high", "difference_low")
    ours, interval = _points(base, *columns, sign=-1) if base else (None, None)
    table.add(
        "Mixed precision loses to FP16 at most, boolq", "quantizer",
        table.paper("accuracy_loss_vs_fp16", "boolq", "block_quantizer"), ours, why, command,
        unit="points", source="measured", interval=interval, kind="at most",
    )  # fmt: skip
    columns = ("over_int4", "over_int4_low", "over_int4_high")
    ours, interval = _points(base, *columns) if base and low_bits else (None, None)
    if low_bits:
        why += f", INT4 rounded alike, at {float(low_bits['bits']):.2f} with scales and embeddings"
    table.add(
        "Mixed precision beats INT4, boolq", "quantizer",
        table.paper("accuracy_gain_vs_int4", "boolq", "block_quantizer"), ours, why, command,
        unit="points", source="measured", interval=interval,
    )  # fmt: skip
