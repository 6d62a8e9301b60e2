"""Exact spectra: every singular value, from a matrix that may be far larger than memory.

The Gram matrix of the short side is accumulated in float64 slab by slab, so only n×n numbers stay in memory. Its
eigenvalues give σ_i to a relative ε₆₄·(σ₁/σ_i)²/2, better than a float32 SVD until σ₁/σ_i ≈ 1e9. Where the smallest
value falls under `GRAM_FLOOR`·σ₁ the squares have lost it, and the spectrum is taken again from a float64 QR.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from eckart.linalg.slabs import InMemory, Matrix, RowSlabs, as_slabs, squared_norm
from eckart.linalg.spectrum import Spectrum
from eckart.linalg.symmetric import eigenvalues

GRAM_FLOOR = 4e-6  # below this share of σ₁ a squared singular value keeps fewer than five digits
GRAM_TILE = 256  # columns a tile: tiles below the diagonal are never computed
WIDE_BYTES = 256 * 2**20  # float64 rows of a wide matrix held while the others pass by


def spectrum(weight: Matrix) -> Spectrum:
    """All singular values of a weight, in float64.

    Args:
        weight: shape `(out_features, in_features)`; torch, NumPy, or row slabs read from disk (read once or twice).

    Returns:
        A complete `Spectrum`; relative accuracy of each σ_i is 2e-5 or better, mostly near 1e-12.

    Raises:
        ValueError: `weight` is not a matrix of floats, or holds a value that is not finite.
    """
    matrix = as_slabs(weight)
    norm = squared_norm(matrix) ** 0.5
    if norm == 0:
        return Spectrum(torch.zeros(min(matrix.shape), dtype=torch.float64), matrix.shape, norm, matrix.dtype)
    squares = eigenvalues(gram(matrix))
    return Spectrum(exact_values(matrix, squares).cpu(), matrix.shape, norm, matrix.dtype)


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
        matrix = InMemory(matrix.weight.T)
    rows, columns = matrix.shape
    side = min(rows, columns)
    total = torch.zeros(side, side, dtype=torch.float64, device=matrix.device)
    if rows >= columns:
        for slab in matrix.slabs():
            for part in slab.split(max(1, WIDE_BYTES // (16 * columns))):
                _add_gram(total, part.to(torch.float64))
        return total
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


def _add_gram(total: Tensor, slab: Tensor) -> None:
    """Add slabᵀ·slab to the tiles on and above the diagonal of `total`, in place."""
    side = total.shape[0]
    for left in range(0, side, GRAM_TILE):
        right = slice(left, side)
        tile = slice(left, min(left + GRAM_TILE, side))
        total[tile, right].addmm_(slab[:, tile].T, slab[:, right])


def _row_blocks(matrix: RowSlabs) -> Iterator[Tensor]:
    """The rows of a wide matrix in float64 blocks of about `WIDE_BYTES`, each joined from whole slabs."""
    held: list[Tensor] = []
    size = 0
    for slab in matrix.slabs():
        held.append(slab.to(torch.float64))
        size += held[-1].nbytes
        if size >= WIDE_BYTES:
            yield torch.cat(held)
            held, size = [], 0
    if held:
        yield torch.cat(held)
