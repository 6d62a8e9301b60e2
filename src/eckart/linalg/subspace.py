"""Comparing subspaces: principal angles, distances, and the overlap of leading directions."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def principal_angles(first: Float[Tensor, "n k"], second: Float[Tensor, "n l"]) -> Float64[Tensor, " a"]:
    """Principal angles between two subspaces, in radians, ascending; small and large ones are accurate to ε₆₄.

    Args:
        first: shape `(n, k)`, columns that span the first subspace; they need not be orthonormal.
        second: shape `(n, l)`, columns that span the second.

    Returns:
        shape `(min(k, l),)`, float64.

    Björck & Golub (1973): cosines where the angle is large, sines where it is small.
    """
    Q1, Q2 = (torch.linalg.qr(columns.to(torch.float64)).Q for columns in (first, second))
    if Q1.shape[1] < Q2.shape[1]:
        Q1, Q2 = Q2, Q1
    cosines = Q1.T @ Q2
    by_cosine = torch.linalg.svdvals(cosines).clamp(max=1).arccos()
    by_sine = torch.linalg.svdvals(Q2 - Q1 @ cosines).clamp(max=1).arcsin().flip(0)
    return torch.where(by_cosine < torch.pi / 4, by_sine, by_cosine)


def geodesic_distance(angles: Tensor) -> float:
    """Length of the shortest path between two subspaces: √Σθ²."""
    return float(torch.linalg.vector_norm(angles))


def chordal_distance(angles: Tensor) -> float:
    """√Σsin²θ: the Frobenius distance of the two projectors over √2."""
    return float(torch.linalg.vector_norm(angles.sin()))


@dataclass(frozen=True)
class Overlap:
    """Overlap φ(i, j) of the leading i and j directions of two bases.

    Attributes:
        phi: shape `(…, k, l)`; entry `[i-1, j-1]` is ‖U_A[:i]ᵀU_B[:j]‖_F² / min(i, j), from 0 to 1.
        chance: shape `(k, l)`; the average for two random subspaces of those dimensions, max(i, j)/n.
    """

    phi: Float64[Tensor, "*b k l"]
    chance: Float64[Tensor, "k l"]


def overlap(first: Float[Tensor, "*b n k"], second: Float[Tensor, "*b n l"]) -> Overlap:
    """Overlap of every pair of leading subspaces of two orthonormal bases, or of batches of them.

    Args:
        first: shape `(…, n, k)`, orthonormal columns, leading direction first.
        second: shape `(…, n, l)`, likewise.

    Hu et al. (2021), "LoRA", section 7.2.
    """
    squares = (first.to(torch.float64).mT @ second.to(torch.float64)).square()
    i = torch.arange(1, squares.shape[-2] + 1, dtype=torch.float64, device=squares.device)[:, None]
    j = torch.arange(1, squares.shape[-1] + 1, dtype=torch.float64, device=squares.device)[None]
    phi = squares.cumsum(-2).cumsum(-1) / torch.minimum(i, j)
    return Overlap(phi, torch.maximum(i, j) / first.shape[-2])
