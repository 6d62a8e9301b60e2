"""Exact spectra: every singular value, from a matrix that may be far larger than memory.

The Gram matrix of the short side is accumulated in float64 slab by slab, so only n×n numbers stay in memory. Its
eigenvalues give σ_i to a relative ε₆₄·(σ₁/σ_i)²/2, better than a float32 SVD until σ₁/σ_i ≈ 1e9. Where the smallest
value falls under `GRAM_FLOOR`·σ₁ the squares have lost it, and the spectrum is taken again from a float64 QR.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from eckart.linalg.scaling import (
    SAFE_SQUARES,
    frobenius_norm,
    normalized,
    require_float64,
    shifted,
    shifted_number,
)
from eckart.linalg.slabs import InMemory, Matrix, RowSlabs, as_slabs
from eckart.linalg.spectra import Spectrum
from eckart.linalg.symmetric import eigenvalues, self_product

GRAM_FLOOR = 4e-6  # below this share of σ₁ a squared singular value keeps fewer than five digits
BLOCK_BYTES = 128 * 2**20  # float64 rows that are multiplied at once


def spectrum(weight: Matrix) -> Spectrum:
    """All singular values of a weight, in float64.

    Args:
        weight: shape `(out_features, in_features)`; torch, NumPy, or row slabs read from disk (read once,
            or twice where it is nearly singular).

    Returns:
        A complete `Spectrum`; relative accuracy of each σ_i is 2e-5 or better, mostly near 1e-12.

    Raises:
        OptionError: `weight` is not a matrix of floats, or its norm is larger than any float64.
        NotFiniteError: it contains NaN or Inf.
    """
    matrix, exponent = as_slabs(weight), 0
    products = gram(matrix)
    total = float(products.trace())
    if not SAFE_SQUARES[0] < total < SAFE_SQUARES[1]:
        norm = frobenius_norm(matrix)
        if norm == 0:
            return Spectrum(torch.zeros(min(matrix.shape), dtype=torch.float64), matrix.shape, 0.0, matrix.dtype)
        matrix, exponent = normalized(matrix, norm)
        products = gram(matrix)
        total = float(products.trace())
    values = shifted(exact_values(matrix, eigenvalues(products)), exponent)
    norm = require_float64(shifted_number(math.sqrt(total), exponent))
    return Spectrum(values.cpu(), matrix.shape, norm, matrix.dtype)


def exact_values(matrix: RowSlabs, squares: Tensor) -> Tensor:
    """Singular values from the Gram matrix's eigenvalues, descending; from a QR where squaring lost the last.

    Returns:
        shape `(min(matrix.shape),)`, float64.
    """
    values = squares.clamp_min(0).sqrt()
    if len(values) and float(values[-1]) < GRAM_FLOOR * float(values[0]):
        return _from_qr(matrix)
    return values


def gram(matrix: RowSlabs) -> Tensor:
    """Gram matrix of the short side in float64: WᵀW for a tall matrix, WWᵀ for a wide one.

    Returns:
        shape `(n, n)` with n the short side; only the upper triangle is filled, for `eigenvalues`.
    """
    if isinstance(matrix, InMemory) and matrix.shape[0] < matrix.shape[1]:
        matrix = InMemory(matrix.weight.T, stored=matrix.dtype)
    rows, columns = matrix.shape
    if rows >= columns:
        # The first product is the sum: filling and adding would wake torch's threads, which then compete with BLAS's.
        total = None
        for block in _row_blocks(matrix):
            total = self_product(block) if total is None else total.add_(self_product(block))
        return torch.zeros(columns, columns, dtype=torch.float64, device=matrix.device) if total is None else total
    total = torch.zeros(rows, rows, dtype=torch.float64, device=matrix.device)
    start = 0
    for block in _row_blocks(matrix):
        other = 0
        for slab in matrix.slabs():
            if other + len(slab) > start:
                total[start : start + len(block), other : other + len(slab)] = block @ slab.to(torch.float64).T
            other += len(slab)
        start += len(block)
    return total


def _from_qr(matrix: RowSlabs) -> Tensor:
    """Singular values from the triangular factor, in float64 and without squaring anything."""
    rows, columns = matrix.shape
    if rows < columns:
        dense = torch.cat([slab.to(torch.float64) for slab in matrix.slabs()])
        return torch.linalg.svdvals(dense.T)
    triangle = torch.zeros(0, columns, dtype=torch.float64, device=matrix.device)
    for slab in matrix.slabs():
        for part in slab.split(columns):
            triangle = torch.linalg.qr(torch.cat([triangle, part.to(torch.float64)]), mode="r").R
    return torch.linalg.svdvals(triangle)


def _row_blocks(matrix: RowSlabs) -> Iterator[Tensor]:
    """The rows of a matrix in float64 blocks of about `BLOCK_BYTES`, independent of its slabs."""
    limit = max(1, BLOCK_BYTES // (8 * max(matrix.shape[1], 1)))
    held: list[Tensor] = []
    for slab in matrix.slabs():
        for part in slab.split(limit):
            if held and sum(map(len, held)) + len(part) > limit:
                yield _joined(held)
                held = []
            held.append(part.to(torch.float64))
    if held:
        yield _joined(held)


def _joined(parts: list[Tensor]) -> Tensor:
    """Concatenate row blocks; a single one is returned unchanged."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
