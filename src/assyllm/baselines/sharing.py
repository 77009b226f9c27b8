"""Methods that compute full fine-tuning's own gradients: shown on real rounds, then its trajectory is theirs.

Recomputation and swapping change where numbers are kept, not the numbers. So a run of theirs first makes a round's
steps as a device would (:meth:`Method.step`) and compares them with full fine-tuning's; where the same clients take
part, full fine-tuning's run is then taken as it is instead of being computed a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from assyllm import seeding
from assyllm.artifacts import ArtifactError
from assyllm.baselines.full import FullFineTuning
from assyllm.baselines.local import schedule, start_state
from assyllm.baselines.method import HEAD, Data, Method
from assyllm.baselines.rounds import Plan
from assyllm.federated.cohort import sample

TOLERANCE = 1e-6  # of a gradient, relative to the tensor's largest entry, float32


@dataclass(frozen=True, slots=True)
class Equality:
    """How far a method's device steps are from full fine-tuning's."""

    gradient: float  # largest difference of a gradient, relative to its tensor's largest entry
    weight: float  # largest difference of a weight after the round
    steps: int


def compare(method: Method, full: FullFineTuning, data: Data, plan: Plan, seed: int, eligible: Sequence[int],
            clients: int = 4) -> Equality:  # fmt: skip
    """Round one of the first ``clients`` of its cohort, by either method.

    It starts from a drawn head: under the usual head of zeros the first step's gradients of all else are zero.

    Raises:
        ArtifactError: a gradient differs by more than :data:`TOLERANCE`.
    """
    gradient = weight = 0.0
    count = 0
    holding = [client for client in eligible if len(data.owned[client])]
    plain = replace(plan.local, optimizer="momentum")  # its first moment after one step from nothing is the gradient
    for client in sample(seed, 1, holding, plan.clients_per_round)[:clients]:
        head = torch.from_numpy(seeding.rng("proof head", seed).standard_normal(full.start()[HEAD].shape))
        ours, theirs = (full.start() | {HEAD: head.to(full.start()[HEAD].dtype)} for _ in range(2))
        states = [start_state(weights, plan.local.optimizer) for weights in (ours, theirs)]
        items = np.asarray(data.owned[client])
        for step, chosen in enumerate(schedule(len(items), plan.local, seed, 1, client), start=1):
            batch = data.train.take(torch.from_numpy(items[chosen]))
            gradients = []
            for subject in (method, full):
                copied = {name: tensor.clone() for name, tensor in ours.items()}
                gradients.append(start_state(copied, "momentum"))
                subject.step(copied, gradients[-1], 1, batch, plain)
            for name, theirs_gradient in gradients[1][0].items():
                scale = float(theirs_gradient.abs().max()) or 1.0
                gradient = max(gradient, float((gradients[0][0][name] - theirs_gradient).abs().max()) / scale)
            method.step(ours, states[0], step, batch, plan.local)
            full.step(theirs, states[1], step, batch, plan.local)
            count += 1
        weight = max([weight, *(float((ours[name] - tensor).abs().max()) for name, tensor in theirs.items())])
    if not gradient <= TOLERANCE:
        raise ArtifactError(
            f"gradients differ from full fine-tuning's by {gradient:.3g}, relative; {TOLERANCE:g} allowed"
        )
    return Equality(gradient, weight, count)
