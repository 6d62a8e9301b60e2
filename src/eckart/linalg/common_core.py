"""Several low-rank updates of one matrix in their common subspaces: small cores between orthonormal frames, exactly.

With thin QRs [B₁ … B_T] = U·R_B and [A₁; …; A_T]ᵀ = V·R_A, every update is Δ_t = B_t·A_t = U·M_t·Vᵀ, whose core
M_t = R_B[:, t]·R_A[:, t]ᵀ is at most Σ r_t on each side. A method that combines updates works on the cores alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg.low_rank import ROUNDING, LowRank
from eckart.linalg.scaling import normalized_tensor


@dataclass(frozen=True, eq=False)
class CommonCore:
    """Updates Δ_t = 2^exponent · left · cores[t] · rightᵀ.

    Attributes:
        left: shape `(out_features, p)`, orthonormal columns, p = min(Σ r_t, out_features).
        right: shape `(in_features, q)`, orthonormal columns, q = min(Σ r_t, in_features).
        cores: shape `(updates, p, q)`.
        exponent: power of two that keeps squares of the cores in range.
        floor: largest entry of a core that rounding can explain; singular values below it are zero.
    """

    left: Float64[Tensor, "m p"]
    right: Float64[Tensor, "n q"]
    cores: Float64[Tensor, "t p q"]
    exponent: int
    floor: float

    @classmethod
    def of(cls, updates: Sequence[LowRank]) -> "CommonCore":
        """The core of updates of one shape.

        Raises:
            OptionError: there is none, or their shapes differ.
        """
        if not updates or len({update.shape for update in updates}) != 1:
            msg = f"a common core needs updates of one shape, got {[update.shape for update in updates]}"
            raise OptionError(msg)
        B, first = normalized_tensor(torch.cat([update.lora_B for update in updates], dim=1))
        A, second = normalized_tensor(torch.cat([update.lora_A for update in updates], dim=0))
        left, right = torch.linalg.qr(B), torch.linalg.qr(A.T)
        ranks = [update.rank for update in updates]
        pairs = zip(left.R.split(ranks, dim=1), right.R.split(ranks, dim=1), strict=True)
        parts = [(b @ a.T, float(b.norm()) * float(a.norm())) for b, a in pairs]
        floor = ROUNDING * max(limit for _, limit in parts)
        return cls(left.Q, right.Q, torch.stack([core for core, _ in parts]), first + second, floor)

    def svds(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """`(u, s, vh)` of every core, without the triplets that are only rounding."""
        return [self.svd(core) for core in self.cores]

    def svd(self, core: Float64[Tensor, "p q"]) -> tuple[Tensor, Tensor, Tensor]:
        """`(u, s, vh)` of a matrix of these cores' size, without the triplets that are only rounding."""
        u, s, vh = torch.linalg.svd(core, full_matrices=False)
        count = int((s > self.floor).sum())
        return u[:, :count], s[:count], vh[:count]


def polar_factor(columns: Float64[Tensor, "p k"], *, floor: float = 1e-12) -> Float64[Tensor, "p k"]:
    """The nearest matrix with orthonormal columns, U·Vᵀ of the SVD of `columns`; on their span only if they depend.

    Args:
        columns: shape `(p, k)`.
        floor: share of the largest singular value below which a direction does not count.
    """
    u, s, vh = torch.linalg.svd(columns, full_matrices=False)
    count = int((s > floor * s.max()).sum()) if len(s) else 0
    return u[:, :count] @ vh[:count]
