"""Muon: momentum whose matrix updates are orthogonalised (Jordan et al. 2024).

Where AdamW leaves a tiny model at chance on the world's facts, Muon on its weight matrices learns them in the
same number of steps (EXPERIMENTS.md). Everything that is not a hidden weight matrix belongs to AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # Newton-Schulz coefficients: steep at 0, singular values end near 1


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices [n, rows, columns] with their singular values brought near 1 (Newton-Schulz, ``steps`` times).

    On a CUDA device in bfloat16, as its authors have it: quicker, and the coefficients do not aim at 1 exactly anyway.
    """
    a, b, c = QUINTIC
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; matrices of one shape are treated as one batch."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; all must be matrices."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for (rows, columns), parameters in shapes.items():
                gradient = torch.stack([p.grad for p in parameters])  # type: ignore[misc]
                state = self.state[parameters[0]]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(gradient)
                momentum = state["momentum"].mul_(group["momentum"]).add_(gradient)
                update = orthogonalise(gradient + group["momentum"] * momentum)
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for parameter, change in zip(parameters, update, strict=True):
                    parameter.sub_(change, alpha=scale)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Muon's parameters of a transformers language model: its matrices but embeddings and the output layer."""
    outer = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    outer.append(model.get_output_embeddings())  # type: ignore[operator]
    theirs = {id(weight) for module in outer for weight in module.parameters()}
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in theirs]


def optimizers(model: nn.Module, matrix_rate: float, other_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices of a transformers language model, AdamW for all the rest."""
    matrices = hidden_matrices(model)
    theirs = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in theirs]
    return [
        Muon(matrices, lr=matrix_rate),
        torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
