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


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter of a language model is Muon's: a matrix that is no embedding and no output layer."""
    outer = ("embed", "lm_head.weight", "lm_head.decoder", "predictions.decoder")
    return parameter.ndim == 2 and not any(part in name for part in outer)


def optimizers(model: nn.Module, matrix_rate: float, other_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices of a transformers language model, AdamW for all the rest."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if is_hidden_matrix(name, p)]
    others = [p for name, p in named if not is_hidden_matrix(name, p)]
    return [
        Muon(matrices, lr=matrix_rate),
        torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
