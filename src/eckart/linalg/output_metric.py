"""Errors of a weight measured by what they do: ‖Lᵀ·E·R‖_F, with C = R·Rᵀ and G = L·Lᵀ.

C = Σ x xᵀ over the layer's inputs x alone measures the change of its outputs, ‖E·C^½‖_F. With G = Σ g gᵀ over the
gradients g of the loss at its outputs it is the change of the loss, to second order, if g and x are independent
(Martens & Grosse 2015, "K-FAC"): outputs on which the loss depends count more.

The best approximation of E of a given rank follows from the SVD of Lᵀ·E·R: L⁻ᵀ·U·Uᵀ·Lᵀ·E, where U are the leading left
singular vectors. R has no inverse in it, so C may be singular. Zhang et al. (2024), "QERA"; Liu et al. (2024), "EoRA".
"""

import math
from dataclasses import dataclass

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


def damped_factor(moment: Float[Tensor, "m m"], damping: float) -> Float64[Tensor, "m m"]:
    """A factor L of a second moment: G + damping·mean(diag G)·I = L·Lᵀ, lower triangular and invertible.

    Damping makes up for few samples: of a thousand gradients no direction is certain not to matter.

    Raises:
        NotFiniteError: the moment contains NaN or Inf.
    """
    require_finite(moment, "the second moment")
    wide = moment.to(torch.float64, copy=True)  # changed in place: it may be the largest thing in memory
    mean = wide.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)  # of outputs that never matter, almost 0
    wide.div_(mean).diagonal().add_(damping)
    return torch.linalg.cholesky(wide).mul_(mean.sqrt())


@dataclass(frozen=True, eq=False)
class Metric:
    """A norm of errors of a weight, ‖Lᵀ·E·R‖_F.

    Attributes:
        inputs: R, from `moment_factor`.
        outputs: L, lower triangular, from `damped_factor`; None for the identity.
    """

    inputs: Float64[Tensor, "n n"]
    outputs: Float64[Tensor, "m m"] | None = None

    def norm(self, error: Float[Tensor, "m n"]) -> float:
        """‖Lᵀ·E·R‖_F, in float64."""
        scaled, exponent = normalized_tensor(error)
        return shifted_number(float(torch.linalg.vector_norm(self.weighted(scaled))), exponent)

    def weighted(self, error: Float[Tensor, "m n"]) -> Float64[Tensor, "m n"]:
        """Lᵀ·E·R, whose Frobenius norm is the error's."""
        return self._weighted_outputs(error.to(self.inputs)) @ self.inputs

    def best_correction(
        self, error: Float[Tensor, "m n"], *, rank: int, generator: torch.Generator | None = None
    ) -> tuple[LowRank, Spectrum]:
        """The product of rank `rank` nearest to an error of a weight.

        Args:
            error: shape `(out_features, in_features)`, any float dtype; W − W̃ of a quantized weight W̃, subtracted
                before.
            rank: from 1 to `min(error.shape)`.
            generator: source of randomness, on the CPU.

        Returns:
            The factors in float64, and the spectrum of Lᵀ·E·R: no product of rank r leaves less than its tail,
            √(‖Lᵀ·E·R‖² − Σ_{i≤r} σ_i²).

        Raises:
            OptionError: `rank` is out of range.
            NotFiniteError: the error contains NaN or Inf.
        """
        scaled, exponent = normalized_tensor(error)
        svd = truncated_svd(shifted(self.weighted(scaled), exponent), rank=rank, generator=generator)
        U = svd.U.to(self.inputs)
        left = U if self.outputs is None else torch.linalg.solve_triangular(self.outputs.T, U, upper=True)
        return LowRank(left, U.T @ self._weighted_outputs(error.to(self.inputs))), svd.spectrum

    def _weighted_outputs(self, error: Tensor) -> Tensor:
        return error if self.outputs is None else self.outputs.T @ error


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
