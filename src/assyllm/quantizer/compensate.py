"""Error-compensating rounding (GPTQ, Frantar et al. 2023): later columns make up for the errors of earlier ones."""

from __future__ import annotations

import torch
from torch import Tensor

from assyllm.quantizer.planes import group_scales, to_integers

COLUMNS = 128  # rounded together before the rest of the matrix is corrected
DAMPING = 0.01  # relative to the mean of the second moments' diagonal; GPTQ's own value


def compensated(weight: Tensor, widths: Tensor, group_size: int, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Round columns left to right, spreading each error over the columns not yet rounded.

    Minimises the layer's output error ||X (W - W^)'||^2 greedily, whatever the rows' widths: rows do not interact.

    Args:
        weight: ``[rows, columns]`` float32.
        widths: ``[rows]`` uint8.
        moments: X'X ``[columns, columns]`` of the layer's inputs on calibration texts.

    Returns:
        Integers ``[rows, columns]`` int8 and scales ``[rows, groups]`` fp16.
    """
    columns = weight.shape[1]
    upper = _inverse_factor(moments)
    rest = weight.clone()
    whole = torch.zeros_like(weight)
    scales = []
    for begin in range(0, columns, COLUMNS):
        end = min(begin + COLUMNS, columns)
        errors = torch.zeros(weight.shape[0], end - begin, device=weight.device)
        for j in range(begin, end):
            if j % group_size == 0:
                if j + group_size > end:  # the group reaches beyond this stretch: bring its rest up to date
                    beyond = slice(end, min(j + group_size, columns))
                    ahead = rest[:, j : beyond.stop].clone()
                    ahead[:, end - j :] -= errors[:, : j - begin] @ upper[begin:j, beyond]
                else:
                    ahead = rest[:, j : j + group_size]
                scales.append(group_scales(ahead, widths, group_size))
            steps = scales[-1]
            whole[:, j] = to_integers(rest[:, j : j + 1], steps, widths)[:, 0]
            error = (rest[:, j] - whole[:, j] * steps[:, 0].float()) / upper[j, j]
            rest[:, j:end] -= error[:, None] * upper[j, j:end]
            errors[:, j - begin] = error
        rest[:, end:] -= errors @ upper[begin:end, end:]
    return whole.to(torch.int8), torch.cat(scales, dim=1)


def _inverse_factor(moments: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped moments' inverse, float32; inputs that never vary count as unit ones."""
    h = moments.double()
    mean = h.diagonal().mean()
    damping = DAMPING * mean if mean > 0 else torch.ones_like(mean)
    h = h + damping * torch.eye(len(h), dtype=h.dtype, device=h.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True).float()
