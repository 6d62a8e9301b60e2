"""A product B·A as a value: its norm, spectrum and algebra from the factors alone, in float64.

The dense product is never formed for a decomposition: QR of the thin factors, then the SVD of an r×r core.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg.scaling import (
    exponent_of,
    largest_of,
    normalized_tensor,
    require_float64,
    shifted,
    shifted_number,
)
from eckart.linalg.slabs import Matrix
from eckart.linalg.spectra import Spectrum
from eckart.linalg.truncated import truncated_svd

# Dividing by a singular value above this share of ‖B‖‖A‖ is safe: its vectors are orthonormal to about 1e-13.
QUOTIENT_FLOOR = 1e-3
# Above this share of ‖B‖²‖A‖², the square of a distance is accurate to 1e-10 as a difference of inner products.
CANCELLATION = 2**-16
ROUNDING = 16 * torch.finfo(torch.float64).eps  # share of ‖B‖‖A‖ below which a singular value is rounding


@dataclass(frozen=True, eq=False)
class LowRank:
    """The matrix `lora_B @ lora_A`.

    Attributes:
        lora_B: shape `(out_features, rank)`.
        lora_A: shape `(rank, in_features)`, same dtype and device.
    """

    lora_B: Float[Tensor, "out r"]
    lora_A: Float[Tensor, "r in"]

    def __post_init__(self) -> None:
        if self.lora_B.ndim != 2 or self.lora_A.ndim != 2 or self.lora_B.shape[1] != self.lora_A.shape[0]:
            msg = (
                "`lora_B` must be (out_features, rank) and `lora_A` (rank, in_features), "
                f"got {tuple(self.lora_B.shape)} and {tuple(self.lora_A.shape)}"
            )
            raise OptionError(msg)

    @classmethod
    def from_svd(cls, U: Tensor, S: Tensor, Vh: Tensor) -> "LowRank":
        """Balanced factors U√S and √S·Vh: both have the same norm, so neither loses range in a narrow dtype."""
        root = S.sqrt().to(U)
        return cls(U * root, root[:, None] * Vh)

    @property
    def rank(self) -> int:
        """Inner dimension of the product: an upper bound on its rank."""
        return self.lora_A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """`(out_features, in_features)`."""
        return self.lora_B.shape[0], self.lora_A.shape[1]

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Exact SVD of the product.

        Returns:
            `(U, S, Vh)` in float64, shapes `(out, k)`, `(k,)`, `(k, in)` with k = min(rank, out, in). Error
            ε₆₄·‖B‖‖A‖, which is more than ε₆₄ of the product where the factors cancel.
        """
        return self._leading(min(self.rank, *self.shape))

    def spectrum(self) -> Spectrum:
        """The complete spectrum: beyond the rank of the product every singular value is zero."""
        *_, exponent = self._normalized
        values = self._singular_values
        norm = _in_float64(float(torch.linalg.vector_norm(values)), exponent)
        return Spectrum(shifted(values, exponent), self.shape, norm, self.lora_B.dtype)

    @property
    def fro_norm(self) -> float:
        """Frobenius norm of the product."""
        return self.spectrum().fro_norm

    @property
    def rounding_floor(self) -> float:
        """Largest singular value that rounding in float64 alone can explain: a few ε₆₄·‖B‖‖A‖."""
        return ROUNDING * self.norm_limit

    @cached_property
    def norm_limit(self) -> float:
        """‖B‖_F·‖A‖_F, at least the Frobenius norm of the product; infinite where float64 ends."""
        left, right, exponent = self._normalized
        return shifted_number(float(left.norm()) * float(right.norm()), exponent)

    def truncate(self, rank: int) -> "LowRank":
        """The best approximation of rank at most `rank`, with balanced factors in float64.

        Raises:
            OptionError: `rank` is below 1.
        """
        if rank < 1:
            msg = f"`rank` must be at least 1, got {rank}"
            raise OptionError(msg)
        return LowRank.from_svd(*self._leading(min(rank, self.rank, *self.shape)))

    def inner(self, other: "LowRank") -> float:
        """⟨self, other⟩ = tr(selfᵀ·other), from the factors."""
        self._check_same_shape(other)
        B, A, exponent = self._normalized
        otherB, otherA, other_exponent = other._normalized
        return shifted_number(float(((B.T @ otherB) * (A @ otherA.T)).sum()), exponent + other_exponent)

    def distance(self, other: "LowRank") -> float:
        """‖self − other‖_F, to 1e-10 relative or ε₆₄·‖B‖‖A‖: from inner products, or stacked factors if they cancel."""
        square = self.fro_norm**2 - 2 * self.inner(other) + other.inner(other)
        if square > CANCELLATION * (self.norm_limit**2 + other.norm_limit**2):
            return math.sqrt(square)
        return (self - other).fro_norm

    def dense(self) -> Float[Tensor, "out in"]:
        """The product itself, in the dtype of the factors."""
        return self.lora_B @ self.lora_A

    def __add__(self, other: "LowRank") -> "LowRank":
        """Exact sum, as stacked factors: ranks add up."""
        self._check_same_shape(other)
        dtype = torch.promote_types(self.lora_B.dtype, other.lora_B.dtype)
        return LowRank(
            torch.cat([self.lora_B.to(dtype), other.lora_B.to(dtype)], dim=1),
            torch.cat([self.lora_A.to(dtype), other.lora_A.to(dtype)], dim=0),
        )

    def __mul__(self, scale: float) -> "LowRank":
        """The scaled product: `lora_B` takes the scale, but both factors share the powers of two of an extreme one."""
        safe = int(math.log2(torch.finfo(self.lora_B.dtype).max)) // 3
        exponent = exponent_of(abs(scale), safe)
        sizes = [exponent_of(largest_of(factor), safe) for factor in (self.lora_B, self.lora_A)]
        if not (exponent or any(sizes)):
            return LowRank(self.lora_B * scale, self.lora_A)
        half = (exponent + sum(sizes)) // 2
        left = shifted(self.lora_B, half - sizes[0]) * shifted_number(scale, -exponent)
        return LowRank(left, shifted(self.lora_A, exponent + sizes[0] - half))

    __rmul__ = __mul__

    def __neg__(self) -> "LowRank":
        """The negative product."""
        return self * -1.0

    def __sub__(self, other: "LowRank") -> "LowRank":
        """Exact difference, as stacked factors."""
        return self + -other

    def _leading(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The leading singular triplets, from the triangular factors R alone where that is accurate enough.

        B·A = Q_B·(R_B·R_Aᵀ)·Q_Aᵀ. With the SVD U·S·Vh of the core, Q_B·U = B·(R_Aᵀ·Vhᵀ·S⁻¹): one product, while
        computing Q_B takes two. The error is ε₆₄·‖B‖‖A‖/σ, so the smallest requested σ decides.
        """
        left, right, exponent = self._normalized
        U, S, Vh = self._core_triplets(left, right, count)
        _in_float64(float(S[0]) if len(S) else 0.0, exponent)
        return U, shifted(S, exponent), Vh

    def _core_triplets(self, left: Tensor, right: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        if self.rank > min(self.shape):
            U, S, Vh = torch.linalg.svd(left @ right, full_matrices=False)
            return U[:, :count], S[:count], Vh[:count]
        RB, RA = self._triangles
        U, S, Vh = torch.linalg.svd(RB @ RA.T)
        U, S, Vh = U[:, :count], S[:count], Vh[:count]
        if count and float(S[-1]) > QUOTIENT_FLOOR * _norm_limit(RB) * _norm_limit(RA):
            return left @ (RA.T @ Vh.T / S), S, (U.T / S[:, None] @ RB) @ right
        return torch.linalg.qr(left).Q @ U, S, Vh @ torch.linalg.qr(right.T).Q.T

    @cached_property
    def _triangles(self) -> tuple[Tensor, Tensor]:
        """The factors R of lora_B and lora_Aᵀ, of whose core R_B·R_Aᵀ the product has the singular values."""
        left, right, _ = self._normalized
        return torch.linalg.qr(left, mode="r").R, torch.linalg.qr(right.T, mode="r").R

    @cached_property
    def _singular_values(self) -> Tensor:
        """Those of the normalized product, on the CPU."""
        left, right, _ = self._normalized
        if self.rank <= min(self.shape):
            left, right = self._triangles[0], self._triangles[1].T
        return torch.linalg.svdvals(left @ right).cpu()

    @cached_property
    def _normalized(self) -> tuple[Tensor, Tensor, int]:
        """Factors in float64 whose products are in range, and the exponent by which their product was divided."""
        (left, first), (right, second) = normalized_tensor(self.lora_B), normalized_tensor(self.lora_A)
        return left, right, first + second

    def _check_same_shape(self, other: "LowRank") -> None:
        if self.shape != other.shape:
            msg = f"both products must have the same shape, got {self.shape} and {other.shape}"
            raise OptionError(msg)


def _in_float64(norm: float, exponent: int) -> float:
    return require_float64(shifted_number(norm, exponent), "the product of the factors")


def _norm_limit(matrix: Tensor) -> float:
    """An upper bound on the spectral norm, √(‖M‖₁·‖M‖∞)."""
    sizes = matrix.abs()
    return math.sqrt(float(sizes.sum(0).max() * sizes.sum(1).max()))


def factorize(weight: Matrix, *, rank: int, generator: torch.Generator | None = None) -> LowRank:
    """The best low-rank factors of a weight: U√S and √S·Vh of its leading singular triplets.

    Args:
        weight: shape `(out_features, in_features)`; torch, NumPy or row slabs, any float dtype.
        rank: from 1 to `min(weight.shape)`.
        generator: source of randomness, on the CPU.

    Returns:
        `LowRank(lora_B, lora_A)` in float32, or in float64 if the weight is stored in float64.

    Raises:
        OptionError: `rank` is out of range, or `weight` is not a finite matrix of floats.
    """
    svd = truncated_svd(weight, rank=rank, generator=generator)
    return LowRank.from_svd(svd.U, svd.S, svd.Vh)
