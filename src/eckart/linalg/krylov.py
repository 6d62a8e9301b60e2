"""Leading singular triplets by randomized block Krylov iteration, for matrices in memory or streamed from disk.

The basis V spans rows of the matrix and grows by one orthonormal block per pass: a pass over W computes both V_j·Wᵀ,
which is stored, and (V_j·Wᵀ)·W, from which the next block is computed, while the rows of W are in the processor's
cache. So W·Vᵀ is complete as soon as the basis is, and no product is computed twice. From one start, a block finds at
most as many copies of a repeated singular value as it has vectors; where the next block would contain nothing new it is
filled with new random directions, so that the singular vectors of orthogonal matrices and of tied values are all found.
Musco & Musco (2015), "Randomized block Krylov methods".
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg.block_sizes import CACHED_BYTES, RESIDENT_BYTES
from eckart.linalg.scaling import frobenius_norm, normalized, shifted, shifted_number
from eckart.linalg.slabs import InMemory, Matrix, RowSlabs, as_slabs, compute_dtype, materialize
from eckart.linalg.symmetric import eigensystem

STEPS = 5  # blocks in the basis; with blocks of half the rank, 2.5 basis vectors per requested singular value
CERTIFIED_STEPS = 8  # where a certificate follows: each further step divides its uncertainty by two or three
SETTLED = 1e-4  # estimated excess error from which further steps are not worth their products
DEFLATED = 1e-6  # a direction with less than this share of its block's norm after projection is rounding, not signal


class BlockKrylov:
    """A growing orthonormal basis of the dominant row space of a matrix, with the matrix's action on it.

    Attributes:
        matrix: the matrix W, shape `(m, n)`.
        V: shape `(l, n)`, orthonormal rows.
        images: shape `(l, m)`, the products V·Wᵀ.
        coupling: shape `(l, c)`: V·WᵀW in the basis of the `c` directions outside V that it reaches; None while closed.
    """

    def __init__(self, matrix: RowSlabs, *, block: int, generator: torch.Generator | None = None) -> None:
        rows, columns = matrix.shape
        self.matrix = matrix
        self.dtype = compute_dtype(matrix)
        self.block, self.generator = block, generator
        self.V = torch.zeros(0, columns, dtype=self.dtype, device=matrix.device)
        self.images = torch.zeros(0, rows, dtype=self.dtype, device=matrix.device)
        self._next, _ = orthonormalize(self._random(min(block, rows, columns)), self.V)
        self._newest = 0
        self.coupling: Tensor | None = None
        self._ritz: tuple[Tensor, Tensor] | None = None

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans the entire row space, to rounding."""
        return len(self._next) == 0

    def extend(self) -> None:
        """Append the next block to the basis and compute the one after it: one pass over the matrix, two products."""
        image, reached = products(self.matrix, self._next)
        self._append(image)
        self._look_beyond(reached)
        missing = min(self.block, min(self.matrix.shape) - len(self.V)) - len(self._next)
        if missing > 0:
            self._refill(missing)

    def close(self) -> None:
        """Append the last block to the basis: one product. `look_beyond` can reopen it."""
        self._append(images(self.matrix, self._next))

    def look_beyond(self) -> Tensor:
        """Reopen a closed basis: compute the `coupling` of its newest block to what is outside. One product."""
        reached = preimages(self.matrix, self.images[len(self.images) - self._newest :])
        return self._look_beyond(reached)

    def _append(self, image: Tensor) -> None:
        """Append the next block and its product."""
        self.V = torch.cat([self.V, self._next])
        self.images = torch.cat([self.images, image])
        self._newest = len(self._next)
        self.coupling = self._ritz = None

    def _look_beyond(self, reached: Tensor) -> Tensor:
        """Split WᵀW of the newest block into its part within the basis, which is dropped, and the next block."""
        self._next, weights = orthonormalize(reached, self.V)
        # Only the newest block still reaches outside: every older one reached into a block that is now inside.
        self.coupling = weights.new_zeros(len(self.V), weights.shape[1])
        self.coupling[len(self.V) - self._newest :] = weights
        return self.coupling

    def _refill(self, count: int) -> None:
        """Widen the next block by random rows orthogonal to the basis and to the block."""
        added, _ = orthonormalize(self._random(count), torch.cat([self.V, self._next]))
        self._next = torch.cat([self._next, added])

    def _random(self, count: int) -> Tensor:
        """Random combinations of the rows of W, shape `(count, n)`: one product."""
        weights = torch.randn(count, self.matrix.shape[0], dtype=self.dtype, generator=self.generator)
        return preimages(self.matrix, weights.to(self.matrix.device))

    def ritz(self) -> tuple[Float64[Tensor, " l"], Float64[Tensor, "l l"]]:
        """Squared singular values of W·Vᵀ, descending, and in columns the rotation of V that diagonalizes them."""
        if self._ritz is None:
            image = self.images.to(torch.float64)
            values, rotation = eigensystem(image @ image.T)
            self._ritz = values.clamp_min(0), rotation
        return self._ritz

    def excess(self, rank: int, fro_norm: float) -> float:
        """Estimate of how much the squared error at a rank exceeds the best possible one, relative to it.

        What the coupling adds to each leading value, were it not to reach other directions: a half to a tenth of the
        truth. Infinite while the basis is closed or smaller than the rank.
        """
        if self.coupling is None or len(self.V) < rank:
            return math.inf
        squares, rotation = self.ritz()
        outward = (rotation[:, :rank].T @ self.coupling.to(torch.float64)).square().sum(1)
        gain = float((outward / squares[:rank].clamp_min(1e-300)).sum())
        return gain / max(fro_norm**2 - float(squares[:rank].sum()), 1e-300)


@dataclass(frozen=True)
class PartialSVD:
    """The leading singular triplets of a matrix.

    Attributes:
        U: shape `(m, rank)`, orthonormal columns.
        S: shape `(rank,)`, float64, descending; each at most the true singular value.
        Vh: shape `(rank, n)`, orthonormal rows.
        fro_norm: Frobenius norm of the entire matrix, accumulated in float64.
        basis: the Krylov basis they were computed from; `certify` uses it to bound what a better basis could gain.
        exponent: the basis is that of the matrix over 2^exponent.
    """

    U: Float[Tensor, "m r"]
    S: Float64[Tensor, " r"]
    Vh: Float[Tensor, "r n"]
    fro_norm: float
    basis: BlockKrylov = field(repr=False)
    exponent: int = field(default=0, repr=False)

    @property
    def error(self) -> float:
        """Relative Frobenius error of the rank-r approximation U·diag(S)·Vh, from ‖W‖² − ΣS²."""
        if self.fro_norm == 0:
            return 0.0
        return math.sqrt(max(0.0, 1 - float((self.S / self.fro_norm).square().sum())))


def partial_svd(
    weight: Matrix,
    *,
    rank: int,
    steps: int = STEPS,
    settled: float = 0.0,
    generator: torch.Generator | None = None,
) -> PartialSVD:
    """Leading `rank` singular triplets of a weight matrix, by block Krylov iteration.

    Args:
        weight: shape `(out_features, in_features)`; torch, NumPy or row slabs, any float dtype; computed in
            float32, or in float64 if stored in float64.
        rank: number of triplets, from 1 to `min(weight.shape)`.
        steps: blocks in the basis; each further block costs two products and divides the excess error by about three.
        settled: no further blocks once the estimate of the excess squared error, relative to the error, is below this.
        generator: source of the random start block, on the CPU; a fixed one makes the result reproducible.

    Returns:
        `PartialSVD(U, S, Vh, fro_norm, basis)`. The squared error exceeds the best possible one by about 0.2 % on
        spectra as flat as i^-1/4, and by far less on steeper ones. Copies of a singular value can be missed only if
        more than `block_size(rank)` values agree to a thousandth and the next ones are nearly as large; the certificate
        is then wide.

    Raises:
        OptionError: `rank` is out of range, or `weight` is not a finite matrix of floats.

    Musco & Musco (2015), "Randomized block Krylov methods".
    """
    matrix = as_slabs(weight)
    if not 1 <= rank <= min(matrix.shape):
        msg = f"`rank` must be from 1 to {min(matrix.shape)} for a {matrix.shape} matrix, got {rank}"
        raise OptionError(msg)
    matrix = resident(matrix)
    norm = frobenius_norm(matrix)
    matrix, exponent = normalized(matrix, norm)
    basis = BlockKrylov(matrix, block=block_size(rank), generator=generator)
    scaled = shifted_number(norm, -exponent)
    for step in range(1, steps):
        if not basis.exhausted:
            basis.extend()
        if settled and step >= STEPS and basis.excess(rank, scaled) < settled:
            break
    else:
        basis.close()
    return triplets(basis, rank=rank, fro_norm=norm, exponent=exponent)


def block_size(rank: int) -> int:
    """Basis vectors added in one step: half the requested rank, and enough for a fast product."""
    return max(16, rank // 2)


def resident(matrix: RowSlabs) -> RowSlabs:
    """The matrix in memory in its `compute_dtype`, if that takes at most `RESIDENT_BYTES`; else unchanged."""
    size = matrix.shape[0] * matrix.shape[1] * compute_dtype(matrix).itemsize
    return InMemory(materialize(matrix), stored=matrix.dtype) if size <= RESIDENT_BYTES else matrix


def triplets(basis: BlockKrylov, *, rank: int, fro_norm: float, exponent: int = 0) -> PartialSVD:
    """The best `rank` triplets within a basis; null directions complete it where the matrix has fewer."""
    squares, rotation = basis.ritz()
    count = min(rank, len(squares))
    rotation = rotation[:, :count].T.to(basis.dtype)
    S = torch.zeros(rank, dtype=torch.float64)
    S[:count] = shifted(squares[:count].sqrt(), exponent).cpu()
    left = orthonormal_rows(rotation @ basis.images, rank)
    right = orthonormal_rows(rotation @ basis.V, rank)
    return PartialSVD(left.T, S, right, fro_norm, basis, exponent)


def products(matrix: RowSlabs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """X·Wᵀ and (X·Wᵀ)·W for X of shape `(b, n)`: shapes `(b, m)` and `(b, n)`, in one pass over the rows of W."""
    images, reached = [], torch.zeros_like(rows)
    for part in _parts(matrix, rows.dtype):
        images.append(rows @ part.T)
        reached.addmm_(images[-1], part)
    return torch.cat(images, dim=1), reached


def images(matrix: RowSlabs, rows: Tensor) -> Tensor:
    """X·Wᵀ for X of shape `(b, n)`: shape `(b, m)`."""
    return torch.cat([rows @ part.T for part in _parts(matrix, rows.dtype)], dim=1)


def preimages(matrix: RowSlabs, rows: Tensor) -> Tensor:
    """Y·W for Y of shape `(b, m)`: shape `(b, n)`."""
    total, start = rows.new_zeros(len(rows), matrix.shape[1]), 0
    for part in _parts(matrix, rows.dtype):
        total.addmm_(rows[:, start : start + len(part)], part)
        start += len(part)
    return total


def _parts(matrix: RowSlabs, dtype: torch.dtype) -> Iterator[Tensor]:
    """Consecutive rows of a matrix, few enough for the caches of all threads; on a GPU the slabs themselves."""
    count = CACHED_BYTES * torch.get_num_threads() // (dtype.itemsize * matrix.shape[1])
    for slab in matrix.slabs():
        yield from slab.to(dtype).split(max(1, count) if slab.device.type == "cpu" else len(slab))


def orthonormalize(block: Tensor, against: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows that span the part of `block` orthogonal to the rows of `against`.

    Two rounds of projection and of a Gram eigendecomposition in float64; directions that are only rounding after the
    projection are dropped.

    Args:
        block: shape `(b, n)`.
        against: shape `(l, n)`, orthonormal rows.

    Returns:
        `(rows, weights)`: shapes `(c, n)` and `(b, c)` with c ≤ b; `weights @ rows` is the projected block.
    """
    floor = DEFLATED if block.dtype == torch.float32 else DEFLATED**2
    floor *= float(torch.linalg.vector_norm(block))
    weights = torch.eye(len(block), dtype=torch.float64, device=block.device)
    for _ in range(2):
        block = block - (block @ against.T) @ against
        wide = block.to(torch.float64)
        squares, rotation = eigensystem(wide @ wide.T)
        lengths = squares.clamp_min(0).sqrt()
        significant = lengths > floor
        rotation, lengths = rotation[:, significant], lengths[significant]
        block = ((rotation / lengths).T @ wide).to(block.dtype)
        weights = weights @ (rotation * lengths)
        floor = 0.5  # a unit vector of the first round that falls below half was rounding after all
    return block, weights.to(block.dtype)


def orthonormal_rows(rows: Tensor, count: int) -> Tensor:
    """`rows`, already orthogonal to rounding, normalized and completed to `count` orthonormal rows."""
    lengths = torch.linalg.vector_norm(rows, dim=1)
    if len(rows) == count and float(lengths.min()) > DEFLATED * float(lengths.max()):
        wide = (rows / lengths[:, None]).to(torch.float64)
        factor = torch.linalg.cholesky(wide @ wide.T)
        return torch.linalg.solve_triangular(factor, wide, upper=False).to(rows.dtype)
    padded = torch.cat([rows, rows.new_zeros(count - len(rows), rows.shape[1])])
    Q, R = torch.linalg.qr(padded.T)
    return (Q * torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q.dtype)).T.contiguous()
