"""The elementwise product of two low-rank products, LyCORIS' LoHa, as one of rank r₁·r₂.

(B₁A₁) ⊙ (B₂A₂) = BA, where the columns of B are the products of a column of B₁ and one of B₂, and the rows of A those
of a row of A₁ and one of A₂: Khatri–Rao products.
"""

import torch
from torch import Tensor


def hadamard_factors(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Factors of the elementwise product of two products, in float64.

    Args:
        first: factors `(out, rank)` and `(rank, in, ...)`.
        second: factors of the same shapes but for the rank.

    Returns:
        factors `(out, rank₁·rank₂)` and `(rank₁·rank₂, in, ...)`.
    """
    (B1, A1), (B2, A2) = ((B.to(torch.float64), A.to(torch.float64)) for B, A in (first, second))
    B = (B1[:, :, None] * B2[:, None, :]).reshape(len(B1), -1)
    A = (A1[:, None] * A2[None, :]).reshape(-1, *A1.shape[1:])
    return B, A
