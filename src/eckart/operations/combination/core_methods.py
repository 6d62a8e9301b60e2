"""Combining updates in their common subspaces, from small cores, as the singular triplets of the combination.

Every update is weighted first. The results are those of the papers' formulas on dense matrices, without forming one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg import LowRank, Spectrum
from eckart.linalg.common_core import CommonCore, polar_factor
from eckart.linalg.scaling import shifted, shifted_number
from eckart.linalg.shared_pair import shared_subspaces
from eckart.operations.combination.mixture import Mixture
from eckart.operations.combination.pruning import elected, trimmed


@dataclass(frozen=True)
class CoreCombination:
    """A combination as singular triplets.

    Attributes:
        U: shape `(out_features, k)`, orthonormal columns.
        S: shape `(k,)`, descending, all above rounding.
        Vh: shape `(k, in_features)`, orthonormal rows.
        pair: of `shared`, its error over all updates and the least possible.
    """

    U: Float64[Tensor, "m k"]
    S: Float64[Tensor, " k"]
    Vh: Float64[Tensor, "k n"]
    pair: tuple[float, float] | None = None

    def spectrum(self, scale: float = 1.0) -> Spectrum:
        """The complete spectrum of the combination times a scale."""
        shape = len(self.U), self.Vh.shape[1]
        values = torch.zeros(min(shape), dtype=torch.float64)
        values[: len(self.S)] = self.S * abs(scale)
        return Spectrum(values, shape, float(values.norm()), torch.float64)

    def lower_bound(self, rank: int) -> float:
        """The relative error that no factors of a rank can be below."""
        return self.pair[1] if self.pair else float(self.S[rank:].norm() / self.S.norm())

    def truncated(self, rank: int) -> LowRank:
        """The best approximation of a rank, with balanced factors; of equal singular values, those that come first."""
        return LowRank.from_svd(self.U[:, :rank], self.S[:rank], self.Vh[:rank])


def combined_core(mixture: Mixture, updates: Sequence[LowRank], *, rank: int | None = None) -> CoreCombination:
    """Combine updates of one matrix in their common subspaces.

    Args:
        mixture: `tsv`: the leading ⌊min(out, in) / updates⌋ singular triplets of each update, their left and right
            vectors all made orthonormal by polar factors. `iso`: the sum with every nonzero singular value replaced
            by their mean. `knots`: the SVD U·Σ·[V₁ᵀ … V_Tᵀ] of the updates next to each other, with the V_t combined
            as `ties` combines updates. `shared`: the sum of the updates in one pair of subspaces of `rank` columns,
            those that lose least of all updates.
        updates: weighted, of one shape.
        rank: of the subspaces of `shared`, which needs it; no other method does.

    Gargiulo et al. (2024), arXiv 2412.00081; Marczak et al. (2025), arXiv 2502.04959; Stoica et al. (2024), arXiv
    2410.19735; and on the exact small core, Panariello et al. (2025), arXiv 2509.17786.
    """
    core = CommonCore.of(updates)
    if mixture.method == "knots":
        return _knots(core, mixture.share)
    if mixture.method == "shared":
        return _shared(core, rank)
    u, s, vh = _tsv(core, min(updates[0].shape)) if mixture.method == "tsv" else _iso(core)
    return CoreCombination(core.left @ u, shifted(s, core.exponent), vh @ core.right.T)


def _tsv(core: CommonCore, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    count = max(1, limit // len(core.cores))
    parts = [(u[:, :count], s[:count], vh[:count]) for u, s, vh in core.svds()]
    left = polar_factor(torch.cat([u for u, _, _ in parts], dim=1))
    right = polar_factor(torch.cat([vh for _, _, vh in parts]).T)
    return core.svd(left * torch.cat([s for _, s, _ in parts]) @ right.T)


def _iso(core: CommonCore) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = core.svd(core.cores.sum(0))
    return u, torch.full_like(s, float(s.mean())) if len(s) else s, vh


def _knots(core: CommonCore, density: float) -> CoreCombination:
    u, s, vh = core.svd(torch.cat(tuple(core.cores), dim=1))
    parts = vh.split(core.cores.shape[2], dim=1)  # in coordinates of core.right
    if not len(s):
        return CoreCombination(core.left @ u, s, u.new_zeros(0, len(core.right)))
    merged = elected(lambda: (trimmed(part @ core.right.T, density) for part in parts))
    U, S, Vh = LowRank(core.left @ (u * s), merged).svd()
    count = int((core.floor < S).sum())
    return CoreCombination(U[:, :count], shifted(S[:count], core.exponent), Vh[:count])


def _shared(core: CommonCore, rank: int | None) -> CoreCombination:
    if rank is None:
        msg = "`method=shared` needs `rank`, the size of the subspaces"
        raise OptionError(msg)
    pair = shared_subspaces(core.cores, rank=rank)
    u, s, vh = core.svd(pair.cores.sum(0))
    return CoreCombination(
        core.left @ (pair.U @ u),
        shifted(s, core.exponent),
        (vh @ pair.V.T) @ core.right.T,
        (pair.error, pair.error_lower_bound),
    )


def shared_error(updates: Sequence[LowRank], factors: LowRank) -> float:
    """√(Σ‖Δ_t − P·Δ_t·Q‖² / Σ‖Δ_t‖²) for the projections P and Q onto the column and row spaces of factors."""
    core = CommonCore.of(updates)
    total = float(core.cores.norm())
    left, right = (torch.linalg.qr(side.double()).Q for side in (factors.lora_B, factors.lora_A.T))
    lost = [
        (update - LowRank(left, left.T @ update.lora_B @ (update.lora_A @ right) @ right.T)).fro_norm
        for update in updates
    ]
    norm = shifted_number(total, core.exponent)
    return float(torch.tensor(lost, dtype=torch.float64).norm()) / norm if norm else 0.0
