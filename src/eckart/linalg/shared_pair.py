"""One pair of subspaces for several matrices: min Σ‖M_t − U·S_t·Vᵀ‖² over U and V of r columns, with a lower bound.

For given V the best U are the r leading eigenvectors of Σ M_t·V·Vᵀ·M_tᵀ, and S_t = Uᵀ·M_t·V. Alternating between U and
V never raises the objective; it starts from the leading subspaces of each side, and again from those of the sum, so
the result is never worse than the truncated sum. No pair loses less than the larger of the two one-sided tails.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg.symmetric import eigensystem

MOST_STEPS = 200
SMALLEST_GAIN = 1e-9  # share of the objective that another alternation must gain


@dataclass(frozen=True)
class SharedSubspaces:
    """A pair of subspaces.

    Attributes:
        U: shape `(p, r)`, orthonormal columns; r is at most p.
        V: shape `(q, s)`, the same for the other side; s is at most q.
        cores: S_t = Uᵀ·M_t·V, shape `(matrices, r, s)`.
        error: √(Σ‖M_t − U·S_t·Vᵀ‖² / Σ‖M_t‖²), 0 for zero matrices.
        error_lower_bound: no pair of r columns has a smaller error.
    """

    U: Float64[Tensor, "p r"]
    V: Float64[Tensor, "q s"]
    cores: Float64[Tensor, "t r s"]
    error: float
    error_lower_bound: float


def shared_subspaces(matrices: Float64[Tensor, "t p q"], *, rank: int) -> SharedSubspaces:
    """The pair of subspaces of `rank` columns that loses least of several matrices, by alternating eigenproblems.

    Args:
        matrices: shape `(matrices, p, q)`, whose squares are in range.
        rank: at least 1; each side has at most as many columns as rows.

    Raises:
        OptionError: `rank` is below 1.

    Vasilescu & Terzopoulos (2002) and De Lathauwer et al. (2000), Tucker decompositions of two modes; arXiv 2606.03723.
    """
    if rank < 1:
        msg = f"`rank` must be at least 1, got {rank}"
        raise OptionError(msg)
    columns, rows = matrices.movedim(0, 1).flatten(1), matrices.mT.movedim(0, 1).flatten(1)
    U, left_tail = _leading(columns, rank)
    V, right_tail = _leading(rows, rank)
    left, _, right = torch.linalg.svd(matrices.sum(0), full_matrices=False)
    starts = [_alternate(matrices, U, V), _alternate(matrices, left[:, :rank], right[:rank].T)]
    U, V, lost = min(starts, key=lambda found: found[2])
    total = float(matrices.square().sum())
    share = lost / total if total else 0.0
    least = max(left_tail, right_tail) / total if total else 0.0
    return SharedSubspaces(U, V, U.T @ matrices @ V, math.sqrt(share), math.sqrt(min(least, share)))


def lost_energy(matrices: Float64[Tensor, "t p q"], U: Float64[Tensor, "p r"], V: Float64[Tensor, "q s"]) -> float:
    """Σ‖M_t − U·UᵀM_tV·Vᵀ‖²: what a pair of subspaces loses."""
    return float((matrices - U @ (U.T @ matrices @ V) @ V.T).square().sum())


def _alternate(matrices: Tensor, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor, float]:
    """The pair after alternating from a start until it gains too little, with its lost energy."""
    rank, lost = U.shape[1], lost_energy(matrices, U, V)
    for _ in range(MOST_STEPS):
        nextU = _leading((matrices @ V).movedim(0, 1).flatten(1), rank)[0]
        nextV = _leading((matrices.mT @ nextU).movedim(0, 1).flatten(1), V.shape[1])[0]
        now = lost_energy(matrices, nextU, nextV)
        if not now < lost:
            break
        gained, U, V, lost = lost - now, nextU, nextV, now
        if gained < SMALLEST_GAIN * now:
            break
    return U, V, lost


def _leading(wide: Tensor, rank: int) -> tuple[Tensor, float]:
    """The leading left singular vectors of a wide matrix, and the energy of all others."""
    values, vectors = eigensystem(wide @ wide.T)
    return vectors[:, :rank].contiguous(), float(values[rank:].clamp_min(0).sum())
