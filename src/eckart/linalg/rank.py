"""The smallest rank that meets a target, proved minimal or bounded from both sides."""

from collections.abc import Callable

import torch

from eckart.linalg.certificate import partial_spectrum
from eckart.linalg.full_spectrum import spectrum
from eckart.linalg.slabs import Matrix, RowSlabs, as_slabs
from eckart.linalg.spectra import RankBound, Spectrum

FULL_SPECTRUM_SIDE = 1024  # up to this short side the full spectrum costs less than a search
SEARCHED = 8  # ranks above the short side over this are cheaper to read off the full spectrum

Rule = Callable[[Spectrum], "int | RankBound | None"]


def minimal_rank(weight: Matrix, *, error: float, generator: torch.Generator | None = None) -> RankBound:
    """Smallest rank whose best approximation has a relative Frobenius error strictly below `error`.

    Args:
        weight: shape `(out_features, in_features)`; torch, NumPy or row slabs, any float dtype.
        error: share of ‖W‖_F, in (0, 1].
        generator: source of randomness of the search, on the CPU.

    Returns:
        `RankBound(lower, upper)`; if `is_exact`, the rank is proved minimal: by the full spectrum in float64,
        or by a certificate that fails with probability under 1e-6. Zero for a zero matrix.

    Raises:
        OptionError: `error` is out of range, or `weight` is not a finite matrix of floats.
    """
    matrix = as_slabs(weight)
    cheapest = spectrum_for(matrix, lambda known: known.rank_for_error(error), generator=generator)
    rank = cheapest.rank_for_error(error)
    if rank is None:
        return RankBound(0, 0)
    return rank if isinstance(rank, RankBound) else RankBound(rank, rank)


def spectrum_for(matrix: RowSlabs, rule: Rule, *, generator: torch.Generator | None = None) -> Spectrum:
    """The cheapest spectrum from which `rule` gives an exact rank: leading values first, then all of them."""
    side = min(matrix.shape)
    rank = 32
    while side > FULL_SPECTRUM_SIDE and rank <= side // SEARCHED:
        leading = partial_spectrum(matrix, rank=rank, generator=generator)
        bound = rule(leading)
        if not isinstance(bound, RankBound):
            return leading
        if bound.lower > side // SEARCHED:
            break
        rank = max(2 * rank, min(round(1.25 * bound.upper), side // SEARCHED))
    return spectrum(matrix)
