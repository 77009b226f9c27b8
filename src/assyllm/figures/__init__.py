"""One module a figure: ``data`` reads the tables of ``READS``, ``draw`` draws. Here: what is known without drawing."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

TOPICS = {
    "1 What was found": ("claims", "algorithm_baselines", "system_baselines", "controls", "non_iid"),
    "2 The problem": (
        "memory_wall", "existing_methods", "participation", "system_methods", "memory_breakdown", "fleet",
    ),
    "3 The method": (
        "workflow", "architecture", "feature_differences", "compatibility_heatmaps", "assembled_models",
        "comparator_ablation", "adapter_gain", "ablations", "robustness", "tradeoff",
    ),
    "4 Cost": (
        "peak_memory", "resource_cost", "quantizer", "model_sizes", "swap_timeline", "swap_ablation",
    ),
}  # fmt: skip


def topic(name: str) -> str:
    """The report's heading over a figure."""
    return next((topic for topic, names in TOPICS.items() if name in names), "5 Others")


def about(name: str) -> str:
    """What a figure shows: the first line of its module, which is not imported."""
    return (ast.get_docstring(_module(name)) or name).splitlines()[0]


def reads(name: str) -> tuple[str, ...]:
    """The tables that a figure is drawn from, by their names; its module is not imported."""
    for node in _module(name).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "READS":
            return ast.literal_eval(node.value)
    return ()


@cache
def _module(name: str) -> ast.Module:
    path = Path(__file__).parent / f"{name}.py"
    return ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "")
