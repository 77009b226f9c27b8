"""A transformers model taken apart into what comes before its layers, the layers, and what comes after them.

For methods that do something between two layers: checkpoint, swap, cache, insert adapters. The parts are
transformers' own modules; what they are called stands in ``blocks/families.py``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from assyllm.artifacts import ArtifactError
from assyllm.baselines.local import Weights
from assyllm.blocks.families import family, find
from assyllm.zoo.forward import Packed, inputs, pool_states


@dataclass(slots=True)
class Call:
    """What every layer is called with beside the states: masks and positions."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class _Recorder(nn.Module):
    """Stands where the layers were and keeps what the first one would have been given."""

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.seen = (states, Call(args, kwargs))
        return states


class Layered:
    """``base`` (a model without its language head) as :meth:`enter`, :meth:`layer` and :meth:`leave`.

    ``weights`` are by ``base``'s own names; a tensor that is not in them is the module's own.

    Raises:
        ArtifactError: a model of a family that is not known.
    """

    def __init__(self, base: nn.Module) -> None:
        config: Any = base.config
        spec = family(config.model_type)
        inside = spec.trunk.partition(".")[2]  # the trunk's path, from the base model on
        trunk = base.get_submodule(inside)
        stack = find(trunk, spec.layers)
        if not isinstance(stack, nn.ModuleList):
            raise ArtifactError(f"{type(base).__name__} is no {config.model_type} as transformers has it")
        self.config = config
        self.prefix = f"{inside}.{spec.layers}." if inside else f"{spec.layers}."
        self.layers = list(stack)
        self.ends = {  # modules after the layers, by their prefix in `base`
            f"{inside}.{name}." if inside else f"{name}.": module
            for name in (spec.norm, "project_out")
            if (module := find(trunk, name)) is not None
        }
        self.skeleton, self.recorder = _without_layers(base, inside, spec.layers, list(self.ends))

    def enter(self, weights: Weights, batch: Packed) -> tuple[Tensor, Call]:
        """The embedded rows [n * R, L, d], and how the layers are to be called."""
        own = {name: t for name, t in weights.items() if self.stage(name) == 0}
        torch.func.functional_call(self.skeleton, own, args=(), kwargs=inputs(self.config, batch))
        return self.recorder.seen

    def layer(self, index: int, weights: Weights, states: Tensor, call: Call) -> Tensor:
        """States [n * R, L, d] after layer ``index``."""
        prefix = f"{self.prefix}{index}."
        own = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
        return torch.func.functional_call(self.layers[index], own, args=(states, *call.args), kwargs=call.kwargs)

    def leave(self, weights: Weights, states: Tensor, batch: Packed) -> Tensor:
        """Pooled states [n, C, F] after the final norm, if there is one."""
        for prefix, module in self.ends.items():
            own = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
            states = torch.func.functional_call(module, own, args=(states,))
        return pool_states(states, batch)

    def stage(self, name: str) -> int:
        """When a weight is used: 0 before the layers, i + 1 in layer i, layers + 1 after them."""
        if name.startswith(self.prefix):
            return int(name.removeprefix(self.prefix).split(".", 1)[0]) + 1
        return len(self.layers) + 1 if name.startswith(("head.", *self.ends)) else 0

    def checkpointed(self, weights: Weights, batch: Packed) -> Tensor:
        """Pooled states [n, C, F]; only the layers' inputs are kept, the backward pass computes the rest again."""
        states, call = self.enter(weights, batch)
        for index in range(len(self.layers)):
            states = checkpoint(self.layer, index, weights, states, call, use_reentrant=False)
        return self.leave(weights, states, batch)


def _without_layers(base: nn.Module, trunk: str, layers: str, ends: list[str]) -> tuple[nn.Module, _Recorder]:
    """A copy of ``base`` with a recorder for its layers and nothing after them."""
    recorder = _Recorder()
    removed: dict[str, nn.Module] = {f"{trunk}.{layers}" if trunk else layers: nn.ModuleList([recorder])}
    removed |= {name.removesuffix("."): nn.Identity() for name in ends}
    kept = {path: base.get_submodule(path) for path in removed}
    for path, module in removed.items():
        base.set_submodule(path, module)
    skeleton = copy.deepcopy(base)
    for path, module in kept.items():
        base.set_submodule(path, module)
    return skeleton, skeleton.get_submodule(next(iter(removed)))[0]  # type: ignore[index]
