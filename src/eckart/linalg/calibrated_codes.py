"""Codes of a quantized weight chosen by what they do to the layer's outputs, column by column with feedback.

With H = C/mean(diag C) + damping·I = U·D·Uᵀ, U unit upper triangular, the output error of W̃ is Σ_j d_j‖(E·U)_j‖² with
E = W − W̃. Its column j depends on the columns of W̃ up to j only, so each column is rounded to the nearest codes of what
remains after the errors of those before it. This is GPTQ (Frantar et al. 2023) in the form of LDLQ (Chee et al. 2023).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg.scaled_levels import ScaledLevels

BLOCK = 64  # columns between two products with all errors so far
MOST_ENTRIES = 2**25  # of the matrices U in memory at once


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
    return calibrated_codes_of_each(weight, [(moment, damping)], grid)[0]


def calibrated_codes_of_each(
    weight: Float[Tensor, "m n"], choices: Sequence[tuple[Tensor, float]], grid: ScaledLevels
) -> UInt8[Tensor, "k m n"]:
    """The codes for each of several second moments with their damping; as many at once as fit into memory.

    Arguments and errors as of `calibrated_codes`.
    """
    if not all(damping > 0 for _, damping in choices):
        msg = f"`damping` must be positive, got {', '.join(str(damping) for _, damping in choices)}"
        raise OptionError(msg)
    together = max(1, MOST_ENTRIES // weight.shape[1] ** 2)
    parts = [choices[start : start + together] for start in range(0, len(choices), together)]
    return torch.cat([_codes(weight.to(torch.float32), part, grid) for part in parts])


def _codes(weight: Tensor, choices: Sequence[tuple[Tensor, float]], grid: ScaledLevels) -> Tensor:
    orders = torch.stack([moment.diagonal().argsort(descending=True, stable=True) for moment, _ in choices])
    feedback = torch.stack(
        [
            _feedback(moment[order][:, order], damping).to(torch.float32)
            for (moment, damping), order in zip(choices, orders, strict=True)
        ]
    )
    rows, scales = weight.T[orders], grid.scales.T[orders]  # columns as rows, which are contiguous
    divisors = torch.where(scales == 0, 1.0, scales)
    levels = grid.levels.to(torch.float32)
    bounds, errors = (levels[:-1] + levels[1:]) / 2, torch.zeros_like(rows)
    codes = torch.empty(rows.shape, dtype=torch.uint8, device=rows.device)
    for start in range(0, rows.shape[1], BLOCK):
        stop = min(start + BLOCK, rows.shape[1])
        goals = rows[:, start:stop] + feedback[:, :start, start:stop].mT @ errors[:, :start]
        for column in range(start, stop):
            made_up = feedback[:, None, start:column, column] @ errors[:, start:column]
            goal = goals[:, column - start] + made_up[:, 0]
            found = torch.bucketize(goal / divisors[:, column], bounds)
            codes[:, column] = found
            errors[:, column] = rows[:, column] - levels[found] * scales[:, column]
    back = orders.argsort(1)[:, :, None].expand_as(codes)
    return codes.gather(1, back).mT.contiguous()


def _feedback(moment: Tensor, damping: float) -> Tensor:
    """U of H = U·D·Uᵀ: what the error of each row's column adds to the goal of a later one."""
    wide = moment.to(torch.float64)
    mean = wide.diagonal().mean()
    normalized = wide / mean if mean > 0 else wide
    normalized = normalized + damping * torch.eye(len(wide), dtype=torch.float64, device=wide.device)
    factor = torch.linalg.cholesky(normalized.flip(0, 1)).flip(0, 1)  # of the reversed matrix: upper triangular
    return factor / factor.diagonal()
