"""Compatibility of blocks: CKA of their states, COR of their activation distributions.

On its own, for any two language models of transformers::

    from assyllm.comparator import compare
    table = compare("bert-base-uncased", "facebook/opt-125m", texts)
    table.heatmap("heatmap.png")
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # torch and transformers load with the first use, not with the package
    if name in ("compare", "Comparison"):
        from assyllm.comparator import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
