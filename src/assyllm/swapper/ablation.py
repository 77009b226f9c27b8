"""What the swapper's parts bring: pipelines timed on a throttled storage, policies counted on the search's walks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from assyllm import params
from assyllm.artifacts import ArtifactError
from assyllm.seeding import seed_for
from assyllm.swapper.models import under_budget
from assyllm.swapper.plan import POLICIES, count, hit_rate, needed_bytes
from assyllm.swapper.walks import Round, units_of, walk

Rows = list[dict[str, Any]]
# the three of the paper's figure 12 with its kind of policy, then ours
PIPELINES: dict[str, dict[str, Any]] = {
    "default": {"preload": False, "preswap": False, "policy": "lru"},
    "preload": {"preload": True, "preswap": False, "policy": "lru"},
    "preload_preswap": {"preload": True, "preswap": True, "policy": "lru"},
    "plan_driven": {"preload": True, "preswap": True, "policy": "plan"},
}


def pipelines(study: params.SwapStudy) -> tuple[Rows, Rows]:
    """Every pipeline over a model of random weights, computing as long as the storage reads.

    Returns:
        Events (seconds from the start of the pipeline), and a row a pass: swaps so far, seconds so far.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256, hidden_size=study.hidden_size, intermediate_size=study.hidden_size * 43 // 16,
        num_hidden_layers=study.layers, num_attention_heads=study.hidden_size // 64, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed_for("swap"))
    pace = study.storage_mb_per_s * 1e6
    events: Rows = []
    times: Rows = []
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        whole = LlamaForCausalLM(config).eval()
        whole.save_pretrained(name)
        with under_budget(name, 10**12, preload=False) as model:
            sizes = dict(model.swapper.sizes)
        total = sum(sizes.values())
        ids = _balanced(whole, total / pace)
        expected = whole(ids).logits
        began = time.perf_counter()
        whole(ids)
        compute = time.perf_counter() - began
        budget = max(round(study.budget_shares[0] * total), needed_bytes(sizes))
        for pipeline, options in PIPELINES.items():
            with under_budget(name, budget, bytes_per_s=pace, record=True, **options) as model:
                for done in range(1, study.passes + 1):
                    logits = model(ids).logits
                    times.append(
                        {
                            "pipeline": pipeline, "policy": options["policy"], "passes": done,
                            "swaps": model.swapper.loads, "seconds": time.perf_counter() - model.swapper.started,
                            "compute_seconds": done * compute, "read_seconds": done * total / pace,
                            "bytes": sum(e.bytes for e in model.swapper.events if e.kind == "load"),
                            "peak_bytes": model.swapper.peak_bytes, "budget_bytes": budget, "source": "measured",
                        }
                    )  # fmt: skip
                model.swapper.finish()
                if not torch.equal(logits, expected):
                    raise ArtifactError(f"swap: {pipeline} changes the model's outputs")
                events += [
                    {
                        "pipeline": pipeline, "kind": e.kind, "unit": e.unit.removeprefix("model/"),
                        "start": e.start, "end": e.end, "bytes": e.bytes, "resident_bytes": e.resident,
                        "source": "measured",
                    }
                    for e in model.swapper.events
                ]  # fmt: skip
    return events, times


def _balanced(model: Any, seconds: float) -> torch.Tensor:
    """As many tokens as make a pass of the resident model last ``seconds``."""
    tokens = 64
    for _ in range(3):
        ids = torch.randint(0, 256, (1, tokens), generator=torch.Generator().manual_seed(0))
        model(ids)
        began = time.perf_counter()
        model(ids)
        tokens = max(8, round(tokens * seconds / (time.perf_counter() - began)))
    return torch.randint(0, 256, (1, tokens), generator=torch.Generator().manual_seed(0))


def reads(
    rounds: Sequence[Round],
    sizes: Mapping[str, int],
    shares: Sequence[float],
    correlation: Mapping[tuple[str, str], float],
) -> Rows:
    """Bytes that every policy reads on the search's own walk, beside the least that is possible.

    Args:
        rounds: one task's; a device walks for its own client alone.
        sizes: bytes of every unit.
        correlation: of block pairs, for ``lru_correlation``.
    """
    window = len(sizes) // 2
    rows = []
    for order in ("candidate", "block"):
        plan = units_of([block for each in rounds for block in walk(each.chains, order)], sizes)
        for share in shares:
            budget = round(share * sum(sizes.values()))
            if budget < needed_bytes(sizes):
                continue
            least = optimum_bytes(plan, sizes, budget)
            for name in [*POLICIES, "plan_window"]:
                policy, seen = ("plan", window) if name == "plan_window" else (name, None)
                steps = count(plan, sizes, budget, policy, window=seen, correlation=correlation)
                rows.append(
                    {
                        "order": order, "budget_share": share, "policy": name, "accesses": len(steps),
                        "bytes": sum(step.bytes for step in steps), "least_bytes": least,
                        "hit_rate": hit_rate(steps), "source": "modelled",
                    }
                )  # fmt: skip
    return rows


def optimum_bytes(plan: Sequence[str], sizes: Mapping[str, int], budget: int) -> int:
    """A lower bound of the bytes that any schedule reads, met by the optimum where sizes are equal.

    Belady's rule byte by byte: what is needed farthest away is given up, in parts too. The unit in use and the one
    before it, which computes while this one is read, stay whole.
    """
    uses: dict[str, list[int]] = {}
    for i in range(len(plan) - 1, -1, -1):
        uses.setdefault(plan[i], []).append(i)  # descending, so that the next use is popped off the end
    kept: dict[str, int] = {}  # bytes of units that are neither in use nor the one before
    read, before = 0, ""
    for unit in plan:
        uses[unit].pop()
        if unit == before:
            continue
        read += sizes[unit] - kept.pop(unit, 0)
        excess = sum(kept.values()) + sizes[unit] + sizes.get(before, 0) - budget
        while excess > 0 and kept:
            far = max(kept, key=lambda u: uses[u][-1])
            gone = min(excess, kept[far])
            excess -= gone
            kept[far] -= gone
            if not kept[far]:
                del kept[far]
        if before and uses[before]:
            kept[before] = sizes[before]
        before = unit
    return read
