"""Codes of a quantized weight chosen by what they do to the layer's outputs, column by column with feedback.

With H = C/mean(diag C) + damping·I = U·D·Uᵀ, U unit upper triangular, the output error of W̃ is Σ_j d_j‖(E·U)_j‖² with
E = W − W̃. Its column j depends on the columns of W̃ up to j only, so each column is rounded to the nearest codes of what
remains after the errors of those before it. This is GPTQ (Frantar et al. 2023) in the form of LDLQ (Chee et al. 2023).
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg.scaled_levels import ScaledLevels

BLOCK = 64  # columns between two products with all errors so far


def calibrated_codes(
    weight: Float[Tensor, "m n"], moment: Float[Tensor, "n n"], grid: ScaledLevels, *, damping: float
) -> UInt8[Tensor, "m n"]:
    """The codes of a weight on a grid, with a small output error rather than the nearest values.

    Columns are rounded in the order of falling moments, so that the most important ones have the least to make up for.

    Args:
        weight: shape `(out_features, in_features)`.
        moment: second moment of the inputs, C.
        grid: the representable values; its scales stay as they are.
        damping: weight of the plain error, relative to the mean moment of a channel; more damping stays nearer to
            rounding to the nearest codes, and closer to right for inputs unlike those in C.

    Returns:
        the index of each entry's level.

    Raises:
        OptionError: the damping is not positive.
    """
    if not damping > 0:
        msg = f"`damping` must be positive, got {damping}"
        raise OptionError(msg)
    order = moment.diagonal().argsort(descending=True, stable=True)
    feedback = _feedback(moment[order][:, order], damping).to(torch.float32)
    rows = weight.to(torch.float32)[:, order].T.contiguous()  # columns as rows, which are contiguous
    levels, scales = ScaledLevels(grid.levels, grid.scales[:, order]), torch.zeros_like(rows)
    errors, codes = scales, torch.empty(rows.shape, dtype=torch.uint8, device=rows.device)
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        goals = rows[start:stop] + feedback[:start, start:stop].T @ errors[:start]
        for column in range(start, stop):
            goal = goals[column - start]
            goal = goal + feedback[start:column, column] @ errors[start:column]
            here = slice(column, column + 1)
            codes[column] = levels.codes(goal[:, None], here)[:, 0]
            errors[column] = rows[column] - levels.decode(codes[column][:, None], here)[:, 0]
    return codes.T[:, order.argsort()].contiguous()


def _feedback(moment: Tensor, damping: float) -> Tensor:
    """U of H = U·D·Uᵀ: what the error of each row's column adds to the goal of a later one."""
    wide = moment.to(torch.float64)
    mean = wide.diagonal().mean()
    normalized = wide / mean if mean > 0 else wide
    normalized = normalized + damping * torch.eye(len(wide), dtype=torch.float64, device=wide.device)
    factor = torch.linalg.cholesky(normalized.flip(0, 1)).flip(0, 1)  # of the reversed matrix: upper triangular
    return factor / factor.diagonal()
