"""The best approximation of a given rank, by the faster of two methods, with a bound on its distance from the optimum.

If the rank is small compared with the matrix, block Krylov iteration computes the triplets and they are certified.
Otherwise the Gram matrix of the short side is decomposed in float64, which is exact. Both return the triplets with the
`Spectrum` that states their accuracy.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg.certificate import certify
from eckart.linalg.full_spectrum import exact_values, gram
from eckart.linalg.krylov import (
    CERTIFIED_STEPS,
    SETTLED,
    block_size,
    images,
    orthonormal_rows,
    partial_svd,
    preimages,
    resident,
)
from eckart.linalg.scaling import frobenius_norm, normalized, shifted
from eckart.linalg.slabs import Matrix, RowSlabs, as_slabs, compute_dtype
from eckart.linalg.spectra import Spectrum
from eckart.linalg.symmetric import eigensystem


@dataclass(frozen=True)
class TruncatedSVD:
    """Leading singular triplets and what is known about the rest.

    Attributes:
        U: shape `(m, rank)`, orthonormal columns.
        S: shape `(rank,)`, float64, descending.
        Vh: shape `(rank, n)`, orthonormal rows.
        spectrum: complete, or partial with certified bounds.
    """

    U: Float[Tensor, "m r"]
    S: Float64[Tensor, " r"]
    Vh: Float[Tensor, "r n"]
    spectrum: Spectrum


def truncated_svd(weight: Matrix, *, rank: int, generator: torch.Generator | None = None) -> TruncatedSVD:
    """Leading `rank` singular triplets of a weight, certified.

    Args:
        weight: shape `(out_features, in_features)`; torch, NumPy or row slabs, any float dtype.
        rank: number of triplets, from 1 to `min(weight.shape)`.
        generator: source of randomness, on the CPU; used only if the rank is small compared with the matrix.

    Returns:
        `TruncatedSVD(U, S, Vh, spectrum)`, factors in float32, or in float64 if the weight is stored in float64.

    Raises:
        OptionError: `rank` is out of range, or `weight` is not a finite matrix of floats.
    """
    matrix = resident(as_slabs(weight))
    if not 1 <= rank <= min(matrix.shape):
        msg = f"`rank` must be from 1 to {min(matrix.shape)} for a {matrix.shape} matrix, got {rank}"
        raise OptionError(msg)
    if CERTIFIED_STEPS * block_size(rank) > min(matrix.shape) // 2:
        return _from_gram(matrix, rank)
    svd = partial_svd(matrix, rank=rank, steps=CERTIFIED_STEPS, settled=SETTLED, generator=generator)
    spectrum = Spectrum(svd.S, matrix.shape, svd.fro_norm, matrix.dtype, certify(svd, generator=generator))
    return TruncatedSVD(svd.U, svd.S, svd.Vh, spectrum)


def _from_gram(matrix: RowSlabs, rank: int) -> TruncatedSVD:
    """Triplets from the eigenvectors of the float64 Gram matrix, and the complete spectrum."""
    norm = frobenius_norm(matrix)
    matrix, exponent = normalized(matrix, norm)
    squares, vectors = eigensystem(gram(matrix))
    values = shifted(exact_values(matrix, squares), exponent).cpu()
    spectrum = Spectrum(values, matrix.shape, norm, matrix.dtype)
    dtype = compute_dtype(matrix)
    near = vectors[:, :rank].T.to(dtype)  # on the short side
    wide = matrix.shape[0] < matrix.shape[1]
    far = preimages(matrix, near) if wide else images(matrix, near)
    near, far = orthonormal_rows(near, rank), orthonormal_rows(far, rank)
    left, right = (near, far) if wide else (far, near)
    return TruncatedSVD(left.T, values[:rank], right, spectrum)
