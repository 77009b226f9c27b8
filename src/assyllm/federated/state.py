"""Everything that a run must remember between two rounds, as JSON values and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from assyllm.adapter.base import Adapter
from assyllm.adapter.linear import LinearSums
from assyllm.adapter.registry import build, describe
from assyllm.assembly.head import HeadSums
from assyllm.assembly.search import Chain
from assyllm.assembly.walk import edges
from assyllm.comparator.cka import HsicTerms
from assyllm.federated.server import Tally

Phase = Literal["native", "survey", "select", "tune", "head", "done"]
PLAIN = ("phase", "round", "tried", "rows", "dropped", "seconds", "chosen", "surveyed", "best")


@dataclass
class State:
    """A run after some round.

    ``rows`` has one dict a round for the result tables, ``seconds`` the rounds' wall times, ``joined`` the
    adapter of every join of every chain (None for natural continuations).
    """

    phase: Phase = "native"
    round: int = 0
    tried: int = 0  # rounds spent on the block that is being chosen
    open: list[Chain] = field(default_factory=list)
    finished: list[Chain] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    chosen: dict[str, int] = field(default_factory=dict)  # times a family won a place
    surveyed: list[int] = field(default_factory=list)  # clients that keep the pooled states of all blocks
    best: str = ""  # id of the finished model that is reported; "": that of highest worth
    tally: Tally = field(default_factory=Tally)
    hsic: np.ndarray | None = None
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    joined: dict[str, Adapter | None] = field(default_factory=dict)
    survey: HeadSums | None = None  # of all blocks of the pool, while the clients are being asked
    heads: dict[str, HeadSums] = field(default_factory=dict)
    probed: dict[tuple[str, str], HeadSums] = field(default_factory=dict)  # of the block that is being chosen
    probes: dict[str, Tensor] = field(default_factory=dict)  # chain -> head weights [F] of its blocks so far
    tuned: dict[str, Tensor] = field(default_factory=dict)  # <join>/<part> -> tensor that is being trained
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # the same -> Adam's two moments

    def keep(self, still: Sequence[Chain], joined: Mapping[str, Adapter | None]) -> None:
        """Go on with the chains ``still``, and of the adapters keep those of open and finished chains."""
        needed = {name for chain in [*still, *self.finished] for name in edges(chain.blocks)}
        self.joined = {name: adapter for name, adapter in joined.items() if name in needed}
        self.open = list(still)

    def dump(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values for a checkpoint; floats survive exactly."""
        raw: dict[str, Any] = {name: getattr(self, name) for name in PLAIN}
        raw["open"] = [chain.to_json() for chain in self.open]
        raw["finished"] = [chain.to_json() for chain in self.finished]
        raw["joined"] = {name: describe(adapter) if adapter else None for name, adapter in self.joined.items()}
        raw["weight"] = [[*key, value] for key, value in self.tally.weight.items()]
        raw["votes"] = [[*key, value] for key, value in self.tally.votes.items()]
        raw["terms"] = [
            [*key, float(t.xy[0]), float(t.xx[0]), float(t.yy[0]), t.rows] for key, t in self.tally.hsic.items()
        ]
        tensors: dict[str, Tensor] = {}
        if self.hsic is not None:
            tensors["hsic"] = torch.from_numpy(self.hsic)
        for block, counts in self.histograms.items():
            tensors[f"histogram/{block}"] = torch.from_numpy(counts)
        for name, adapter in self.joined.items():
            if adapter is not None:
                tensors |= {f"adapter/{name}/{part}": tensor for part, tensor in adapter.state_dict().items()}
        for (chain, block), sums in self.tally.adapter.items():
            tensors |= {f"sums/{chain}>{block}/{i}": part for i, part in enumerate(sums.parts())}
        if self.survey is not None:
            tensors |= {f"survey/{i}": part for i, part in enumerate(self.survey.parts())}
        for name, head in self.heads.items():
            tensors |= {f"head/{name}/{i}": part for i, part in enumerate(head.parts())}
        for (chain, block), head in self.probed.items():
            tensors |= {f"probed/{chain}>{block}/{i}": part for i, part in enumerate(head.parts())}
        tensors |= {f"probe/{name}/weight": weight for name, weight in self.probes.items()}
        tensors |= {f"tuned/{name}": tensor for name, tensor in self.tuned.items()}
        for name, moments in self.moments.items():
            tensors |= {f"moment{i}/{name}": tensor for i, tensor in enumerate(moments)}
        return tensors, raw

    @classmethod
    def load(cls, tensors: dict[str, Tensor], raw: dict[str, Any]) -> State:
        """The inverse of :meth:`dump`."""
        groups: dict[str, dict[str, dict[str, Tensor]]] = {
            kind: {} for kind in ("adapter", "sums", "survey", "head", "probed", "probe", "tuned", "moment0", "moment1")
        }
        for name in sorted(tensors):
            kind, _, rest = name.partition("/")
            if kind in groups:
                key, _, part = rest.rpartition("/")
                groups[kind].setdefault(key, {})[part] = tensors[name]
        joined = {
            name: build(described, groups["adapter"][name]) if described else None
            for name, described in raw["joined"].items()
        }
        adapters = {_pair(name): LinearSums(*parts.values()) for name, parts in groups["sums"].items()}
        terms = {
            (chain, block): HsicTerms(np.array([xy]), np.array([xx]), np.array([yy]), rows)
            for chain, block, xy, xx, yy, rows in raw["terms"]
        }
        tally = Tally(
            weight={(chain, block): value for chain, block, value in raw["weight"]},
            votes={(chain, block): value for chain, block, value in raw["votes"]},
            hsic=terms,
            adapter=adapters,
        )
        plain = {name: raw[name] for name in PLAIN}
        return cls(
            **plain,
            open=[Chain.from_json(chain) for chain in raw["open"]],
            finished=[Chain.from_json(chain) for chain in raw["finished"]],
            tally=tally,
            hsic=tensors["hsic"].numpy() if "hsic" in tensors else None,
            histograms={
                name.removeprefix("histogram/"): tensor.numpy()
                for name, tensor in tensors.items()
                if name.startswith("histogram/")
            },
            joined=joined,
            survey=HeadSums(*groups["survey"][""].values()) if groups["survey"] else None,
            heads={name: HeadSums(*parts.values()) for name, parts in groups["head"].items()},
            probed={_pair(name): HeadSums(*parts.values()) for name, parts in groups["probed"].items()},
            probes={name: parts["weight"] for name, parts in groups["probe"].items()},
            tuned=_flat(groups["tuned"]),
            moments={name: (first, _flat(groups["moment1"])[name]) for name, first in _flat(groups["moment0"]).items()},
        )


def _flat(group: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{name}/{part}": tensor for name, parts in group.items() for part, tensor in parts.items()}


def _pair(name: str) -> tuple[str, str]:
    """(chain id, block) from a tensor's name."""
    chain, _, block = name.rpartition(">")
    return chain, block
