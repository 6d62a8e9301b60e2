"""Intruder dimensions: leading directions of a tuned matrix that resemble no singular direction of its base, certified.

The quantity of interest is the largest |cos| between a leading left singular vector u of the tuned matrix and all left
singular vectors of the base. Comparing u with every one of them takes a full SVD; two bounds usually avoid it.

From below: u is not an intruder if its cosine with a leading singular vector of the base exceeds the threshold by more
than the uncertainty of that vector (its residual over its gap, Davis & Kahan).

From above: k Lanczos steps with WWᵀ from u give a Gauss rule for the weights cos² of u on the squared singular values.
By the separation theorem of Chebyshev, Markov and Stieltjes no point has more weight than the two nodes around it
together (Golub & Meurant 2010, "Matrices, Moments and Quadrature"): if the largest such sum is below the square of the
threshold, u is an intruder, although no singular vector of the base was computed.

Shuttleworth et al. (2024), "LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg.full_spectrum import gram
from eckart.linalg.krylov import CERTIFIED_STEPS, block_size, images, preimages, resident
from eckart.linalg.scaling import frobenius_norm, normalized
from eckart.linalg.slabs import Matrix, RowSlabs, as_slabs
from eckart.linalg.symmetric import eigensystem
from eckart.linalg.truncated import truncated_svd

TOP, THRESHOLD = 10, 0.5  # as in the paper
DETERMINED = 0.1  # a vector with a larger uncertainty counts as unknown
PARTIAL_SIDE = 1024  # short side up to which all singular vectors take less time than the bounds that avoid them
FULL_SIDE = 4096  # short side up to which all singular vectors are computed if the bounds leave a direction undecided
LANCZOS_STEPS = 32
EIGEN_ROUNDING = (
    1e-13  # assumed rounding of a float64 Gram matrix and its eigensolver, relative to the largest eigenvalue
)
BROKEN_DOWN = 1e-13  # share of the norm below which a Lanczos vector is rounding: the measure is exhausted


@dataclass(frozen=True)
class Intruders:
    """Bounds on each leading tuned direction's largest |cos| with a left singular vector of the base.

    Attributes:
        lower, upper: shape `(k,)`, leading direction first; they hold except with probability 1e-6.
        threshold: directions below it are intruders.
    """

    lower: Float64[Tensor, " k"]
    upper: Float64[Tensor, " k"]
    threshold: float

    @property
    def found(self) -> list[int]:
        """Indices of the directions that certainly are intruders."""
        return (self.upper < self.threshold).nonzero().flatten().tolist()

    @property
    def undecided(self) -> list[int]:
        """Indices of the directions whose bounds include the threshold."""
        return ((self.lower < self.threshold) & (self.upper >= self.threshold)).nonzero().flatten().tolist()


def intruders(
    base: Matrix,
    tuned: Matrix,
    *,
    top: int = TOP,
    threshold: float = THRESHOLD,
    generator: torch.Generator | None = None,
) -> Intruders:
    """Leading left singular vectors of the tuned matrix that resemble no left singular vector of the base.

    Args:
        base: shape `(out_features, in_features)`; torch, NumPy or row slabs.
        tuned: same shape.
        top: number of leading directions to test.
        threshold: |cos| below which a direction is an intruder.
        generator: source of randomness, on the CPU.

    Returns:
        `Intruders`: certified bounds. A direction is undecided where ties or a vanishing gap leave singular vectors
        undetermined, or where it would take all vectors of a matrix whose sides are both over 4096.

    Raises:
        OptionError: the shapes differ, or a matrix is not a finite matrix of floats.
    """
    matrix, changed = (resident(as_slabs(weight)) for weight in (base, tuned))
    if matrix.shape != changed.shape:
        msg = f"`base` and `tuned` must have the same shape, got {matrix.shape} and {changed.shape}"
        raise OptionError(msg)
    matrix, changed = (normalized(each, frobenius_norm(each))[0] for each in (matrix, changed))
    top = min(top, *matrix.shape)
    vectors, uncertainty = _leading(changed, top, generator)
    U, uncertainty = vectors.to(torch.float64), uncertainty.cpu()
    lower, upper = torch.zeros(top, dtype=torch.float64), torch.ones(top, dtype=torch.float64)

    def narrow(least: Tensor, most: Tensor) -> bool:
        lower.copy_(torch.maximum(lower, (least.cpu() - uncertainty).clamp_min(0)))
        upper.copy_(torch.minimum(upper, most.cpu() + uncertainty))
        return not Intruders(lower, upper, threshold).undecided

    bounds = _bounds(matrix, U, top, generator)
    while (bound := next(bounds, None)) is not None and not narrow(*bound):
        pass
    return Intruders(lower, upper, threshold)


def _bounds(
    matrix: RowSlabs, U: Tensor, top: int, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Bounds on the largest |cos| of each row of U with the matrix's left singular vectors, in order of cost."""
    zeros, ones = U.new_zeros(len(U)), U.new_ones(len(U))
    for position, rank in enumerate(_partial_ranks(matrix, top)):
        vectors, uncertainty = _partial(matrix, rank, generator)
        yield _from_known(vectors.to(torch.float64) @ U.T, uncertainty, complete=False)
        if position == 0 and matrix.shape[0] <= matrix.shape[1]:
            # For a tall matrix the weight on its left null space would count as that of a single vector.
            yield zeros, _heaviest_point(matrix, U).sqrt().minimum(ones)
    if min(matrix.shape) <= FULL_SIDE:
        squares, vectors, uncertainty = _gram_vectors(matrix)
        if matrix.shape[0] < matrix.shape[1]:
            cosines = vectors.T @ U.T
        else:
            cosines = (vectors.T @ preimages(matrix, U).T) / squares.sqrt().clamp_min(1e-300)[:, None]
        yield _from_known(cosines, uncertainty, complete=True)


def _from_known(cosines: Tensor, uncertainty: Tensor, *, complete: bool) -> tuple[Tensor, Tensor]:
    """Bounds on the largest |cos| from the cosines with the determined vectors; the others share what remains."""
    certain = uncertainty < DETERMINED
    known, slack = cosines[certain].abs(), uncertainty[certain][:, None]
    if not len(known):
        return cosines.new_zeros(cosines.shape[1]), cosines.new_ones(cosines.shape[1])
    inside = (torch.linalg.vector_norm(known, dim=0) - torch.linalg.vector_norm(slack)).clamp_min(0)
    rest = torch.zeros_like(inside) if complete and bool(certain.all()) else (1 - inside.square()).clamp_min(0).sqrt()
    return (known - slack).amax(0).clamp_min(0), torch.maximum((known + slack).amax(0), rest).clamp_max(1)


def _partial_ranks(matrix: RowSlabs, top: int) -> list[int]:
    """Numbers of leading vectors that are much cheaper to compute than all of them."""
    side = min(matrix.shape)
    if side <= PARTIAL_SIDE:
        return []
    return [rank for rank in (4 * top, 16 * top) if CERTIFIED_STEPS * block_size(rank) <= side // 2]


def _leading(matrix: RowSlabs, top: int, generator: torch.Generator | None) -> tuple[Tensor, Float64[Tensor, " k"]]:
    """The `top` leading vectors as rows, from as many triplets as it takes to determine them, and their uncertainty."""
    partial = None
    for rank in _partial_ranks(matrix, top):
        partial = _partial(matrix, rank, generator)
        if bool((partial[1][:top] < DETERMINED / 4).all()):
            break
    else:
        if partial is None or min(matrix.shape) <= FULL_SIDE:
            squares, vectors, uncertainty = _gram_vectors(matrix)
            left = vectors.T[:top]
            if matrix.shape[0] >= matrix.shape[1]:
                left = images(matrix, left.contiguous()) / squares[:top].sqrt().clamp_min(1e-300)[:, None]
            return left, uncertainty[:top]
    vectors, uncertainty = partial
    return vectors[:top], uncertainty[:top]


def _partial(matrix: RowSlabs, rank: int, generator: torch.Generator | None) -> tuple[Tensor, Float64[Tensor, " k"]]:
    """Leading vectors as rows by block Krylov iteration, and their largest possible errors.

    The error of each is its residual over its gap (Davis & Kahan).
    """
    svd = truncated_svd(matrix, rank=rank, generator=generator)
    tail = svd.spectrum.tail
    assert tail is not None, "_partial_ranks never asks for all singular values"
    left, S = svd.U.T.contiguous(), svd.S.to(svd.U.device)
    residual = torch.cat([images(matrix, svd.Vh) - S[:, None] * left, preimages(matrix, left) - S[:, None] * svd.Vh], 1)
    distance = torch.linalg.vector_norm(residual.to(torch.float64), dim=1).cpu()
    squares = svd.S.square()
    # Any one of the leading j squares may have the entire difference between their bound and the computed ones.
    excess = (tail.energy_upper[1:] - squares.cumsum(0)).clamp_min(0).flip(0).cummin(0).values.flip(0)
    least, most = (squares - tail.rounding).clamp_min(0).sqrt(), (squares + excess).sqrt()
    above = torch.cat([torch.tensor([math.inf], dtype=torch.float64), least[:-1]])
    below = torch.cat([most[1:], torch.tensor([tail.norm], dtype=torch.float64)])
    gap = torch.stack([above - svd.S, svd.S - below, svd.S]).amin(0)
    return left, _share(math.sqrt(2) * distance, gap).to(left.device)


def _gram_vectors(matrix: RowSlabs) -> tuple[Tensor, Tensor, Tensor]:
    """All squared singular values, the singular vectors of the short side, and the uncertainty of the left ones."""
    squares, vectors = eigensystem(gram(matrix))
    squares = squares.clamp_min(0)
    between = squares[:-1] - squares[1:]
    wall = squares.new_full((1,), math.inf)
    gap = torch.minimum(torch.cat([wall, between]), torch.cat([between, wall]))
    uncertainty = _share(2 * EIGEN_ROUNDING * squares[0].expand_as(gap), gap)
    if matrix.shape[0] >= matrix.shape[1]:
        uncertainty = uncertainty * _share(squares[0].expand_as(squares), squares).sqrt()
    return squares, vectors, uncertainty


def _share(part: Tensor, total: Tensor) -> Tensor:
    """Part / total; infinite where the total is not positive."""
    return torch.where(total > 0, part / total.clamp_min(1e-300), math.inf)


def _heaviest_point(matrix: RowSlabs, U: Tensor) -> Float64[Tensor, " k"]:
    """Upper bounds on the weight of each unit row of U on any single eigenvalue of WWᵀ, by Lanczos.

    Every row has its own recurrence, orthogonalized against all of its earlier vectors; products are shared.
    """
    steps = min(LANCZOS_STEPS, matrix.shape[0])
    basis, vector = U[:, None], U
    T = U.new_zeros(len(U), steps, steps)
    for step in range(steps):
        reached = images(matrix, preimages(matrix, vector))
        T[:, step, step] = (reached * vector).sum(1)
        if step + 1 == steps:
            break
        for _ in range(2):
            reached = reached - torch.einsum("vkm,vk->vm", basis, torch.einsum("vkm,vm->vk", basis, reached))
        length = torch.linalg.vector_norm(reached, dim=1)
        length = torch.where(length > BROKEN_DOWN * torch.linalg.matrix_norm(T), length, 0.0)
        T[:, step, step + 1] = T[:, step + 1, step] = length
        vector = reached * torch.where(length > 0, 1 / length.clamp_min(1e-300), 0.0)[:, None]
        basis = torch.cat([basis, vector[:, None]], 1)
    weights = torch.linalg.eigh(T).eigenvectors[:, 0].square()
    return (weights[:, :-1] + weights[:, 1:]).amax(1) if steps > 1 else weights.amax(1)
