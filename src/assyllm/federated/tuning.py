"""Training the reported chain's adapters on the devices, and averaging (paper section 3.3).

A round is one gradient step: every client of a cohort computes the gradient of its loss on its own examples, the
gradients are summed behind the secure sum, weighted by examples, and the server takes one Adam step (FedAdam with
one local step, Reddi 2021). Blocks stay frozen. Two losses:

- ``local``: each adapter by itself, mean squared distance of what it gives, pooled, from what its block natively
  receives, relative to that target's variance. No gradient passes through a block, so one layer's activations
  are all that a device keeps.
- ``end_to_end``: cross-entropy of the answers, through the blocks behind the adapter (devices recompute layer by
  layer; here, at tiny widths, activations are kept). A linear head on the pooled states is trained along and
  thrown away: the closed-form head is fitted to the tuned chain afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from assyllm.adapter.base import Adapter
from assyllm.adapter.cross_attention import CrossAttentionAdapter
from assyllm.adapter.linear import LinearAdapter
from assyllm.adapter.sent import ID, NUMBER
from assyllm.assembly.walk import Walker, edge, edges
from assyllm.federated.context import Context
from assyllm.federated.state import State
from assyllm.zoo.encoding import combine

BETAS, EPSILON = (0.9, 0.99), 1e-8
HEAD = "head/weight"
UNITS = {"local": "shares of the variance", "end_to_end": "nats"}  # of the losses
PROJECTION = ("weight", "bias")  # of a cross-attention adapter


def tune(run: Context, state: State, chain: Sequence[str]) -> State:
    """A round of tuning a chain's adapters."""
    settings = run.settings.adapter
    if not state.tuned:
        state.tuned = start(run, state, chain)
    clients, late = run.sample(state.round)
    names = sorted(state.tuned)
    told: dict[str, float | str] = {}
    if clients:
        gradients, loss = _gradients(run, state, chain, clients)
        told = {"loss": loss, "loss_unit": UNITS[settings.tuning]}
        step = sum(1 for row in state.rows if row.get("tuned") and row["participants"]) + 1
        for name in names:
            _adam(state, name, gradients[name], step, settings.learning_rate)
        _write_back(state, chain)
    size = NUMBER * sum(state.tuned[name].numel() for name in names)
    fixed = (state.joined[name] for name in edges(chain) if not any(key.startswith(f"{name}/") for key in names))
    down = size + ID * len(chain) + sum(adapter.sent_bytes for adapter in fixed if adapter is not None)
    run.log(state, clients, late, up_sums=size, down=down)
    state.rows[-1] |= {"tuned": 1, **told}
    if sum(1 for row in state.rows if row.get("tuned")) >= settings.tuning_rounds or not names:
        state.tuned, state.moments, state.phase = {}, {}, "head"
    return state


def start(run: Context, state: State, chain: Sequence[str]) -> dict[str, Tensor]:
    """The tensors to train, by join: joins that the projection explains badly get cross-attention.

    A natural continuation has no adapter. Where the projection leaves less than ``adapter.mismatch`` of the
    variance unexplained on public text it stays as it was fitted (the paper: "in most cases a projection
    suffices"). With ``adapter.tuned: projection`` the attention keeps its start, which adds nothing: the control that
    says what training alone is worth.
    """
    settings = run.settings.adapter
    tuned: dict[str, Tensor] = {}
    for i in range(1, len(chain)):
        name = edge(chain[:i], chain[i])
        adapter = state.joined[name]
        if not isinstance(adapter, LinearAdapter):
            continue
        if run.joins.unexplained(tuple(chain[:i]), chain[i], adapter) < settings.mismatch:
            continue
        old, new = (run.pool.info(block).model for block in (chain[i - 1], chain[i]))
        heads, key_heads = (int(run.pool.config(model).num_attention_heads) for model in (old, new))
        reads = run.joins.readings.embedded(new)[0].shape[-1]
        started = CrossAttentionAdapter.start(adapter, reads, heads, key_heads, f"{run.data.task}/{name}")
        state.joined = state.joined | {name: started}
        tuned |= {
            f"{name}/{part}": tensor.detach().clone()
            for part, tensor in started.named_parameters()
            if settings.tuned == "all" or part in PROJECTION
        }
    width = 2 * run.pool.info(chain[-1]).width
    if settings.tuning == "end_to_end":
        tuned[HEAD] = torch.zeros(width)
    return tuned


def _gradients(
    run: Context, state: State, chain: Sequence[str], clients: Sequence[int]
) -> tuple[dict[str, Tensor], float]:
    """The cohort's mean gradient, weighted by the examples that clients claim, and the honest clients' loss.

    The clients' losses are means over their own examples; weighted by examples, their mean is the mean over all
    of the cohort's, so that one backward pass gives the sum that the secure sum would. What bounds a liar is the
    number of examples that it may claim; a bound on the norm of one client's gradient is not simulated.
    """
    held = {client: len(run.data.owned[client]) for client in clients}
    counts = run.liars.weights(held, run.limits.examples)
    each = torch.tensor([counts[client] for client in clients for _ in range(held[client])])
    items = [item for client in clients for item in run.data.owned[client]]
    walker = run.walker(state, "train", items)
    adapters: dict[str, Adapter] = {}
    leaves: dict[str, Tensor] = {}
    for i in range(1, len(chain)):
        name = edge(chain[:i], chain[i])
        adapter = state.joined[name]
        if adapter is not None and any(key.startswith(f"{name}/") for key in state.tuned):
            trained = CrossAttentionAdapter.build(adapter.config(), adapter.state_dict()).requires_grad_()
            adapters[name] = trained
            leaves |= {f"{name}/{part}": tensor for part, tensor in trained.named_parameters()}
    if run.settings.adapter.tuning == "local":
        loss, honest = _local_loss(run, chain, adapters, walker, items, each)
    else:
        leaves[HEAD] = state.tuned[HEAD].clone().requires_grad_()
        encoded = run.data.encoded(run.pool, run.pool.info(chain[0]).model, "train")[items]
        vectors = walker.trained(chain, adapters)
        scores = combine(vectors) @ leaves[HEAD]
        scores = scores.masked_fill(~encoded.choice_mask, -1e9)
        if bool((each == 1).all()):
            loss = torch.nn.functional.cross_entropy(scores, encoded.answer)
            honest = float(loss.detach())
        else:
            losses = torch.nn.functional.cross_entropy(scores, encoded.answer, reduction="none")
            loss, honest = _means(losses, each)
    names = sorted(leaves)
    if not names:
        return {}, honest
    found = torch.autograd.grad(loss, [leaves[name] for name in names], allow_unused=True)
    filled = [torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(names, found, strict=True)]
    return dict(zip(names, filled, strict=True)), honest


def _means(losses: Tensor, each: Tensor) -> tuple[Tensor, float]:
    """The mean of losses ``[n, ...]`` that count ``each``, and of those above 0 (of all if none is)."""
    if bool((each == 1).all()):
        mean = losses.mean()
        return mean, float(mean.detach())
    losses = losses.reshape(len(each), -1).mean(1)
    told = each.clamp(min=0) if bool((each > 0).any()) else each.abs()
    return losses @ each / each.abs().sum(), float(losses.detach() @ told / told.sum())


def _local_loss(
    run: Context, chain: Sequence[str], adapters: dict[str, Adapter], walker: Walker, items: list[int], each: Tensor
) -> tuple[Tensor, float]:
    """Sum over tuned joins of the pooled distance from what the block natively receives; the honest clients' too."""
    total, told = torch.zeros(()), 0.0
    real = run.data.encoded(run.pool, run.pool.info(chain[0]).model, "train").choice_mask[items]
    for i in range(1, len(chain)):
        name, before = edge(chain[:i], chain[i]), run.pool.before(chain[i])
        if name not in adapters or before is None:
            continue
        given = walker.given(chain[:i], chain[i], adapters[name])
        target = run.data.native[before][items]
        shown = real[:, : target.shape[1]]
        given, target = given[:, : target.shape[1]][shown], target[shown]
        counts = each[:, None].expand_as(shown)[shown]
        loss, honest = _means((given - target).square(), counts)
        scale = run.data.public.pooled[before].var().clamp(min=1e-12)  # no device knows the cohort's
        total, told = total + loss / scale, told + honest / float(scale)
    return total, told


@torch.no_grad()
def _adam(state: State, name: str, gradient: Tensor, step: int, rate: float) -> None:
    first, second = state.moments.get(name) or (torch.zeros_like(gradient), torch.zeros_like(gradient))
    first = BETAS[0] * first + (1 - BETAS[0]) * gradient
    second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
    state.moments = state.moments | {name: (first, second)}
    change = (first / (1 - BETAS[0] ** step)) / ((second / (1 - BETAS[1] ** step)).sqrt() + EPSILON)
    state.tuned = state.tuned | {name: state.tuned[name] - rate * change}


def _write_back(state: State, chain: Sequence[str]) -> None:
    """Put the trained tensors into the chain's adapters."""
    for i in range(1, len(chain)):
        name = edge(chain[:i], chain[i])
        own = {key.rpartition("/")[2]: tensor for key, tensor in state.tuned.items() if key.startswith(f"{name}/")}
        adapter = state.joined[name]
        if own and adapter is not None:
            built = CrossAttentionAdapter.build(adapter.config(), adapter.state_dict() | own)
            state.joined = state.joined | {name: built.eval().requires_grad_(False)}
