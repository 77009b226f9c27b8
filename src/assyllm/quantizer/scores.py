"""How much a block's output feels each output row of its matrices: the paper's analyses and ours, one name each.

``sparsity``     1 - Hoyer's sparsity of the row's weights; near 0 where few weights matter (no data needed).
``noise``        squared relative change of the block's output when the row alone gets Gaussian noise.
``masking``      the same when the row alone is set to zero.
``output``       the same when the row alone goes to INT4 (ours).
``correlation``  mean squared correlation, over tokens, of the row's activation with the block's output.
``replaced``     ``output`` measured literally, one forward pass a row; slow, the check of ``output``.

The changes are measured to first order, all rows at once. With J the derivative of the normalised output y / ||y|| to
a layer's output and d = X dW' what a change dW of one row adds there, E_v (v' J d)^2 = ||J d||^2 for standard normal
v: one backward pass gives one sample of it for every row of every matrix of the block. Scores of changes are
divided by ||dW||^2: what is kept is the squared relative output change of one unit of squared weight error in that
row, so that any width's error can be weighed by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from assyllm.artifacts import ArtifactError
from assyllm.blocks.block import Block
from assyllm.quantizer.calibrate import Batches, linears
from assyllm.quantizer.planes import check_weight, nearest, restore
from assyllm.seeding import seed_for

CHANGES = ("output", "noise", "masking")  # measured together
SCORES = ("sparsity", *CHANGES, "correlation", "replaced")
Rows = dict[str, Tensor]  # matrix -> [rows] float32


def scores(
    block: Block, received: Batches, names: Iterable[str], group_size: int, probes: int, seed: int
) -> dict[str, Rows]:
    """The named scores of every row of every linear layer of a block.

    Args:
        received: the block's native inputs (:func:`assyllm.quantizer.calibrate.native_inputs`).
        group_size: of the INT4 rounding that ``output`` and ``replaced`` measure.
        probes: samples of each example's output change.

    Raises:
        ArtifactError: an unknown score, or a weight that is not finite.
    """
    names = list(names)
    unknown = [name for name in names if name not in SCORES]
    if unknown:
        raise ArtifactError(f"sensitivity.scores: {unknown[0]!r} is none of {', '.join(SCORES)}")
    weights = {p: check_weight(m.weight, f"block {block.id}: {p}.weight") for p, m in linears(block).items()}
    found: dict[str, Rows] = {}
    if "sparsity" in names:
        found["sparsity"] = {path: density(weight) for path, weight in weights.items()}
    changes = {name: changed(name, weights, group_size, seed) for name in names if name in CHANGES}
    if changes:
        found |= _probed(block, received, changes, probes, seed)
    if "correlation" in names:
        found["correlation"] = _correlation(block, received)
    if "replaced" in names:
        found["replaced"] = _replaced(block, received, changed("output", weights, group_size, seed))
    return found


def density(weight: Tensor) -> Tensor:
    """1 - Hoyer's sparsity of each row: 1 where all weights are alike in size, 0 where one holds everything."""
    n = weight.shape[1] ** 0.5
    ratio = weight.abs().sum(1) / weight.norm(dim=1).clamp(min=1e-12)
    return ((ratio - 1) / max(n - 1, 1e-12)).clamp(0, 1)


def changed(name: str, weights: Mapping[str, Tensor], group_size: int, seed: int) -> Rows:
    """The change ``[out, in]`` of every matrix that a score measures, all rows changed."""
    out = {}
    for path, weight in weights.items():
        if name == "masking":
            out[path] = -weight
        elif name == "noise":
            draw = torch.Generator().manual_seed(seed_for("quantizer noise", path, seed))
            noise = torch.randn(weight.shape, generator=draw).to(weight.device)
            out[path] = 0.05 * weight.norm(dim=1, keepdim=True) / weight.shape[1] ** 0.5 * noise
        else:
            four = torch.full((weight.shape[0],), 4, dtype=torch.uint8, device=weight.device)
            out[path] = restore(*nearest(weight, four, group_size), weight, four, group_size) - weight
    return out


def _unit(total: Rows, change: Rows, examples: int) -> Rows:
    return {
        path: (total[path] / examples / change[path].pow(2).sum(1).clamp(min=1e-20)).float().cpu() for path in change
    }


def _probed(block: Block, received: Batches, changes: Mapping[str, Rows], probes: int, seed: int) -> dict[str, Rows]:
    layers = linears(block)
    total = {n: {p: torch.zeros(len(d), device=d.device) for p, d in rows.items()} for n, rows in changes.items()}
    examples = 0

    def keep(path: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            if not out.requires_grad:
                out.requires_grad_()
            x, n = given[0].detach(), examples

            def backward(grad: Tensor) -> None:
                for name, rows in changes.items():
                    added = x @ rows[path].T.to(x.dtype)
                    total[name][path] += (grad * added).view(n, -1, added.shape[-1]).sum(1).float().pow(2).sum(0)

            out.register_hook(backward)

        return hook

    handles = [module.register_forward_hook(keep(path)) for path, module in layers.items()]
    draw = torch.Generator().manual_seed(seed_for("quantizer probes", block.id, seed))
    try:
        for hidden, mask in received:
            examples = len(mask)
            for _ in range(probes):
                y = block(hidden, mask)
                real = mask.unsqueeze(-1)
                size = (y.detach() * real).flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-12)
                v = torch.randn(y.shape, generator=draw).to(y.device) * real / size
                y.backward(v.to(y.dtype))
    finally:
        for handle in handles:
            handle.remove()
    number = probes * sum(len(mask) for _, mask in received)
    return {name: _unit(total[name], changes[name], number) for name in changes}


@torch.no_grad()
def _outputs(block: Block, received: Batches) -> list[Tensor]:
    return [block(hidden, mask) * mask.unsqueeze(-1) for hidden, mask in received]


@torch.no_grad()
def _correlation(block: Block, received: Batches) -> Rows:
    """From the last layer to the first (the paper's bottom-up order)."""
    layers = linears(block)
    seen: dict[str, list[Tensor]] = {path: [] for path in reversed(layers)}
    handles = [
        module.register_forward_hook(lambda m, given, out, p=path: seen[p].append(out.reshape(-1, out.shape[-1])))
        for path, module in layers.items()
    ]
    try:
        outputs = [block(hidden, mask).flatten(0, 1) for hidden, mask in received]
    finally:
        for handle in handles:
            handle.remove()
    real = [mask.flatten() for _, mask in received]
    y = _standard(torch.cat([part[keep] for part, keep in zip(outputs, real, strict=True)]))
    found = {}
    for path, parts in seen.items():
        z = _standard(torch.cat([part[keep] for part, keep in zip(parts, real, strict=True)]))
        found[path] = (z.T @ y / len(y)).pow(2).mean(1).float().cpu()
    return found


def _standard(x: Tensor) -> Tensor:
    x = x.float() - x.float().mean(0)
    return x / x.pow(2).mean(0).sqrt().clamp(min=1e-12)


@torch.no_grad()
def _replaced(block: Block, received: Batches, change: Rows) -> Rows:
    layers = linears(block)
    plain = _outputs(block, received)
    sizes = [y.flatten(1).norm(dim=1).clamp(min=1e-12) for y in plain]
    total = {path: torch.zeros(len(rows)) for path, rows in change.items()}
    for path, rows in change.items():
        weight = layers[path].weight
        for row in range(len(rows)):
            kept = weight[row].clone()
            weight[row] += rows[row]
            pairs = zip(_outputs(block, received), plain, sizes, strict=True)
            total[path][row] = sum(float(((z - y).flatten(1).norm(dim=1) / s).pow(2).sum()) for z, y, s in pairs)
            weight[row] = kept
    change = {path: rows.cpu() for path, rows in change.items()}
    return _unit(total, change, sum(len(mask) for _, mask in received))
