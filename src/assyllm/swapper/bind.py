"""Modules whose weights come and go: a hook asks the engine for a unit just before its modules compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from assyllm.artifacts import ArtifactError

Ask = Callable[[str], dict[str, Tensor]]


@dataclass
class Part:
    """The modules of one unit.

    Args:
        unit: its id.
        doors: modules whose call means that the unit is needed.
        slots: tensor name -> the (module, attribute) pairs that it fills; more than one where weights are tied.
    """

    unit: str
    doors: list[nn.Module] = field(default_factory=list)
    slots: dict[str, list[tuple[nn.Module, str]]] = field(default_factory=dict)


class Binding:
    """Fills modules with the tensors that the engine gives, and empties them again (weights on the meta device).

    A module that computes outside its unit's turn finds no weights: an error, never another layer's bytes.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts = {part.unit: part for part in parts}
        self._full: set[str] = set()
        self._empty = {
            (id(module), name): _get(module, name)
            for part in self._parts.values()
            for slots in part.slots.values()
            for module, name in slots
        }

    def hook(self, ask: Ask) -> None:
        """Ask for a unit's tensors whenever one of its modules is called."""
        for part in self._parts.values():

            def before(_module: nn.Module, _args: object, part: Part = part) -> None:
                tensors = ask(part.unit)
                if part.unit not in self._full:
                    self._full.add(part.unit)
                    for name, slots in part.slots.items():
                        for module, attribute in slots:
                            _set(module, attribute, tensors[name])

            for door in part.doors:
                door.register_forward_pre_hook(before)
            self._guard(part)

    def _guard(self, part: Part) -> None:
        """Refuse to compute without weights: torch's own kernels for the CPU read past meta ones in silence."""

        def check(_module: nn.Module, _args: object) -> None:
            if part.unit not in self._full:
                raise ArtifactError(f"{part.unit}: called outside its turn, its weights are not in memory")

        for module in {id(module): module for slots in part.slots.values() for module, _ in slots}.values():
            module.register_forward_pre_hook(check)

    def unbind(self, unit: str) -> None:
        """Empty a unit's modules."""
        self._full.discard(unit)
        for slots in self._parts[unit].slots.values():
            for module, attribute in slots:
                _set(module, attribute, self._empty[id(module), attribute])


def place_buffers(model: nn.Module, device: torch.device) -> None:
    """Move what no file holds (rotary frequencies, position numbers) to where the model computes."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)


def _get(module: nn.Module, name: str) -> Tensor:
    found: Tensor | None = module._parameters.get(name, module._buffers.get(name))
    assert found is not None
    return found


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    if name in module._parameters:
        kept = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
        module._parameters[name] = kept
    else:
        module._buffers[name] = tensor
