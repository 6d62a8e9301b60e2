"""Norms of the rows of W + s·B·A from its parts: DoRA's denominator, without the dense product."""

from contextlib import nullcontext

import torch
from torch import Tensor


def squared_row_norms(weight: Tensor) -> Tensor:
    """‖w‖² of each row, in float64: in float32 the squares of weights of 1e-23 vanish, and 0 / 0 would be trained on.

    Args:
        weight: shape `(out_features, in_features)`.

    Returns:
        float64, shape `(out_features,)`.
    """
    return torch.linalg.vector_norm(weight, dim=1, dtype=torch.float64).square()


@torch.no_grad()
def row_norms(weight: Tensor, squared: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """‖w + s·b·A‖ of each row w of the weight and b of B: √(‖w‖² + 2s·b·(A·w) + s²·b·(A·Aᵀ)·bᵀ).

    The paper treats the norm as a constant in the gradient, so none is taken here.

    Args:
        weight: shape `(out_features, in_features)`.
        squared: its `squared_row_norms`.
        A: shape `(rank, in_features)`.
        B: shape `(out_features, rank)`.
        scaling: s.

    Returns:
        float32 (float64 for a float64 weight), shape `(out_features,)`.

    Liu et al. (2024), "DoRA: Weight-decomposed low-rank adaptation", section 4.3.
    """
    A, B = A.to(squared.dtype), B.to(squared.dtype)
    device = weight.device.type
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        cross = (weight @ A.T.to(weight.dtype)).to(squared.dtype)
        inner = cross.mul_(2 * scaling).addmm_(B, A @ A.T, alpha=scaling**2)
    norms = (squared + (inner * B).sum(dim=1)).clamp_(min=0).sqrt_()
    return norms.to(torch.promote_types(weight.dtype, torch.float32))
