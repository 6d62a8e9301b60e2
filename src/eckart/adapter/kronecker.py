"""The Kronecker product of two matrices, LyCORIS' LoKr, as a product of rank r₁·r₂.

(B₁A₁) ⊗ (B₂A₂) = (B₁ ⊗ B₂)(A₁ ⊗ A₂). Its singular values are the products of theirs.
"""

import torch
from torch import Tensor


def kronecker_factors(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Factors of the Kronecker product of two products, in float64.

    Args:
        first: factors `(out₁, rank₁)` and `(rank₁, in₁)`.
        second: factors `(out₂, rank₂)` and `(rank₂, in₂, ...)`.

    Returns:
        factors `(out₁·out₂, rank₁·rank₂)` and `(rank₁·rank₂, in₁·in₂, ...)`.
    """
    (B1, A1), (B2, A2) = ((B.to(torch.float64), A.to(torch.float64)) for B, A in (first, second))
    A = torch.einsum("pi,qj...->pqij...", A1, A2)
    return torch.kron(B1.contiguous(), B2.contiguous()), A.reshape(
        len(A1) * len(A2), A1.shape[1] * A2.shape[1], *A2.shape[2:]
    )


def whole_factors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix `(out, in, ...)` as a product of itself and the identity, on its shorter side."""
    outputs, inputs = matrix.shape[0], matrix[0].numel()
    if outputs <= inputs:
        return torch.eye(outputs, dtype=matrix.dtype, device=matrix.device), matrix
    identity = torch.eye(inputs, dtype=matrix.dtype, device=matrix.device)
    return matrix.reshape(outputs, inputs), identity.reshape(inputs, *matrix.shape[1:])
