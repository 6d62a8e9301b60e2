"""Errors of a weight measured by what they do to a layer's outputs: ‖E·C^½‖_F, with C = Σ x xᵀ over its inputs x.

With any factor C = R·Rᵀ the norm is that of E·R, and the best approximation of E of a given rank follows from the SVD
of E·R without an inverse: U·Uᵀ·E, where U are the leading left singular vectors. So C may be singular.
Zhang et al. (2024), "QERA"; Liu et al. (2024), "EoRA".
"""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg.finite import require_finite
from eckart.linalg.low_rank import LowRank
from eckart.linalg.scaling import normalized_tensor, shifted, shifted_number
from eckart.linalg.spectra import Spectrum
from eckart.linalg.truncated import truncated_svd


def relative_ridge(size: int) -> float:
    """Share of its own diagonal that is added to a second moment of this size, for entries rounded to float32."""
    return torch.finfo(torch.float32).eps * math.sqrt(size)


def moment_factor(moment: Float[Tensor, "n n"]) -> Float64[Tensor, "n n"]:
    """A factor R of a second moment: C + ridge·diag(C) = R·Rᵀ, lower triangular.

    The ridge, `relative_ridge(n)` of each diagonal entry, makes up for the rounding of C to float32. Because it is
    relative, an outlier channel does not hide the others; a channel that is always zero stays zero.

    Args:
        moment: symmetric and positive semidefinite up to rounding in float32, in any float dtype.

    Raises:
        OptionError: it is not such a matrix.
        NotFiniteError: it contains NaN or Inf.
    """
    require_finite(moment, "the second moment")
    wide = moment.to(torch.float64)
    lengths = wide.diagonal().clamp_min(0).sqrt()
    divisors = torch.where(lengths > 0, lengths, 1.0)
    correlation = wide / divisors / divisors[:, None]
    correlation.diagonal().copy_(torch.ones_like(lengths))
    ridge = relative_ridge(len(wide))
    for attempt in range(4):  # the rounding of highly correlated channels may add up
        correlation.diagonal().fill_(1 + ridge * 10**attempt)
        factor, failed = torch.linalg.cholesky_ex(correlation)
        if not failed:
            return factor * lengths[:, None]
    msg = f"the second moment of shape {tuple(moment.shape)} is not positive semidefinite, as a sum of x·xᵀ is"
    raise OptionError(msg)


def output_norm(error: Float[Tensor, "m n"], factor: Float64[Tensor, "n n"]) -> float:
    """‖E·C^½‖_F with C = R·Rᵀ, from the factor R."""
    scaled, exponent = normalized_tensor(error)
    return shifted_number(float(torch.linalg.vector_norm(scaled @ factor)), exponent)


def best_correction(
    error: Float[Tensor, "m n"],
    factor: Float64[Tensor, "n n"],
    *,
    rank: int,
    generator: torch.Generator | None = None,
) -> tuple[LowRank, Spectrum]:
    """The product of rank `rank` nearest to an error of a weight, by what it changes in the layer's outputs.

    Args:
        error: shape `(out_features, in_features)`, any float dtype; W − W̃ of a quantized weight W̃, subtracted before.
        factor: R with C = R·Rᵀ, from `moment_factor`.
        rank: from 1 to `min(error.shape)`.
        generator: source of randomness, on the CPU.

    Returns:
        The factors in float64 (lora_B has orthonormal columns), and the spectrum of E·C^½: no product of rank r has a
        smaller output error than its tail, √(‖E·C^½‖² − Σ_{i≤r} σ_i²).

    Raises:
        OptionError: `rank` is out of range.
        NotFiniteError: the error contains NaN or Inf.
    """
    scaled, exponent = normalized_tensor(error)
    svd = truncated_svd(shifted(scaled @ factor, exponent), rank=rank, generator=generator)
    return LowRank(svd.U, svd.U.T @ error.to(torch.float64)), svd.spectrum


def emphasized(moment: Float[Tensor, "n n"], directions: Float[Tensor, "r n"], weight: float) -> Float64[Tensor, "n n"]:
    """A second moment with more weight on some input directions: C + weight·tr(C)/r·P.

    P is the orthogonal projection onto the directions' span, of rank r; with the rows of an adapter's lora_A, rounding
    then spares what the adapter reads.

    Args:
        moment: C.
        directions: any vectors, not necessarily independent.
        weight: of the projection, relative to the mean moment of a direction in the span.
    """
    wide = moment.to(torch.float64)
    _, values, rows = torch.linalg.svd(directions.to(torch.float64), full_matrices=False)
    rows = rows[values > values.max() * len(wide) * torch.finfo(torch.float64).eps] if len(values) else rows
    if not len(rows):
        return wide
    return wide + (weight * float(wide.trace()) / len(rows)) * (rows.T @ rows)
