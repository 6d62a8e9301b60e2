"""One autograd function for a frozen linear layer with a low-rank update.

In the forward pass the update is added to the product in place; in the backward pass the gradient of the input
accumulates both paths in one tensor. Nothing as large as the activations is stored except the input, scaled or copied.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from eckart.nn.dropout import Dropout
from eckart.nn.frozen import as_given, frozen_weight, product, working_dtype


class _LowRankLinear(torch.autograd.Function):
    """y = x·Wᵀ + bias + scaling·drop(x)·Aᵀ·Bᵀ for rows x; with `scale`, y = scale ⊙ (y − bias) + bias."""

    @staticmethod
    @as_given
    def forward(  # noqa: PLR0917
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        base: nn.Module,
        scaling: float,
        dropout: Dropout | None,
    ) -> Tensor:
        dtype, work = x.dtype, working_dtype(x)
        rows, down, up = (tensor.to(work) for tensor in (x, A, B))
        h = (rows if dropout is None else dropout(rows)) @ down.T
        added = bias.to(work) if bias is not None and scale is None else None
        y = product(rows, frozen_weight(base, work), added).addmm_(h, up.T, alpha=scaling).to(dtype)
        ctx.save_for_backward(x, A, B, h.to(dtype), scale, None if scale is None else y)
        ctx.base, ctx.scaling, ctx.dropout = base, scaling, dropout
        if scale is None:
            return y
        return y * scale if bias is None else torch.addcmul(bias, y, scale)

    @staticmethod
    @once_differentiable
    @as_given
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (g,) = gradients
        x, A, B, h, scale, y = ctx.saved_tensors
        dropout = cast("Dropout | None", ctx.dropout)
        needs_x, needs_A, needs_B, needs_bias, needs_scale = ctx.needs_input_grad[:5]
        dscale = (g * y).sum(dim=0) if needs_scale else None
        dbias = g.sum(dim=0) if needs_bias else None
        if scale is not None:
            g = g * scale
        dtype, work = g.dtype, working_dtype(g)
        g, x, A, B, h = (tensor.to(work) for tensor in (g, x, A, B, h))
        dh = (g @ B).mul_(ctx.scaling)
        dB = (g.T @ h).mul_(ctx.scaling).to(dtype) if needs_B else None
        dA = (dh.T @ (x if dropout is None else dropout(x))).to(dtype) if needs_A else None
        dx = None
        if needs_x:
            dx = product(g, frozen_weight(ctx.base, work).T)
            if dropout is None:
                dx.addmm_(dh, A)
            else:
                dx.addcmul_(dh @ A, dropout.mask.to(work))
            dx = dx.to(dtype)
        return dx, dA, dB, dbias, dscale, None, None, None


def low_rank_linear(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    *,
    base: nn.Module,
    scaling: float,
    dropout: Dropout | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """A frozen linear layer with its update.

    Args:
        x: shape `(…, in_features)`.
        A: shape `(rank, in_features)`, in the dtype of x.
        B: shape `(out_features, rank)`, in the dtype of x.
        bias: shape `(out_features,)`, in the dtype of x.
        base: module with the frozen weight, which is read again for the gradient: four-bit weights are not kept dense.
        scaling: scale of B·A.
        dropout: dropout of the input of A, shape of x; its scale is applied here.
        scale: factor of every output before the bias, shape `(out_features,)`: DoRA's magnitude / norm of the row.

    Returns:
        shape `(…, out_features)`.
    """
    rows = x.reshape(-1, x.shape[-1])
    if dropout is not None:
        scaling /= dropout.keep
        dropout = Dropout(dropout.mask.view_as(rows), dropout.keep)
    y = cast("Tensor", _LowRankLinear.apply(rows, A, B, bias, scale, base, scaling, dropout))
    return y.view(*x.shape[:-1], y.shape[-1])
