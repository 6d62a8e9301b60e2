"""Intruder dimensions: leading directions of a tuned matrix that resemble no singular direction of its base, proved.

For each leading left singular vector u of the tuned matrix the largest |cos| with all left singular vectors of the
base is asked for. Comparing with every one of them takes a whole SVD; two limits mostly spare it.

From below: a leading singular vector of the base whose own uncertainty is known (its residual over its gap, Davis &
Kahan) and whose cosine with u is over the threshold clears u.

From above: k Lanczos steps with WWᵀ from u give a Gauss rule of the weights cos² that u puts on the squared singular
values. By the separation theorem of Chebyshev, Markov and Stieltjes no point holds more than the two rule weights
around it (Golub & Meurant 2010, "Matrices, Moments and Quadrature"): if the largest such pair is under the threshold's
square, u is an intruder, though no singular vector of the base was computed.

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
from eckart.linalg.slabs import Matrix, RowSlabs, as_slabs
from eckart.linalg.symmetric import eigensystem
from eckart.linalg.truncated import truncated_svd

TOP, THRESHOLD = 10, 0.5  # the paper's
DETERMINED = 0.1  # a vector that may be off by more than this takes part as one of the unknown rest
PARTIAL_SIDE = 1024  # short side up to which all singular vectors take less time than the limits that spare them
WHOLE_SIDE = 4096  # short side up to which all singular vectors are computed where nothing less decides
LANCZOS_STEPS = 32
EIGEN_ROUNDING = 1e-13  # of the largest eigenvalue: what a float64 Gram matrix and its eigensolver are trusted to
BROKEN_DOWN = 1e-13  # share of the norm below which a Lanczos vector is rounding: the measure is exhausted


@dataclass(frozen=True)
class Intruders:
    """Limits of each leading tuned direction's largest |cos| with a left singular vector of the base.

    Attributes:
        lower, upper: shape `(k,)`, leading direction first; true except with probability 1e-6.
        threshold: directions that stay below it are intruders.
    """

    lower: Float64[Tensor, " k"]
    upper: Float64[Tensor, " k"]
    threshold: float

    @property
    def found(self) -> list[int]:
        """Positions, from 0, of the directions that are proved intruders."""
        return (self.upper < self.threshold).nonzero().flatten().tolist()

    @property
    def undecided(self) -> list[int]:
        """Positions of the directions whose limits lie on both sides of the threshold."""
        return ((self.lower < self.threshold) & (self.upper >= self.threshold)).nonzero().flatten().tolist()


@dataclass(frozen=True)
class _Vectors:
    """Left singular vectors as rows of `U`, and how far off each may be."""

    U: Tensor
    uncertainty: Float64[Tensor, " k"]


def intruders(
    base: Matrix,
    tuned: Matrix,
    *,
    top: int = TOP,
    threshold: float = THRESHOLD,
    generator: torch.Generator | None = None,
) -> Intruders:
    """Which of the tuned matrix's leading left singular vectors no left singular vector of the base resembles.

    Args:
        base: shape `(out_features, in_features)`; torch, NumPy or row slabs.
        tuned: same shape.
        top: leading directions to ask about.
        threshold: |cos| below which a direction is an intruder.
        generator: source of randomness, on the CPU.

    Returns:
        `Intruders`: certified limits. A direction stays undecided where ties or a vanishing gap leave singular
        vectors undetermined, or where nothing short of all vectors of a matrix with sides over 4096 would decide.

    Raises:
        OptionError: shapes differ, or a matrix is not a finite one of floats.
    """
    matrix, changed = resident(as_slabs(base)), resident(as_slabs(tuned))
    if matrix.shape != changed.shape:
        msg = f"`base` and `tuned` must have the same shape, got {matrix.shape} and {changed.shape}"
        raise OptionError(msg)
    top = min(top, *matrix.shape)
    leading = _leading(changed, top, generator)
    U, own = leading.U.to(torch.float64), leading.uncertainty.cpu()
    lower, upper = torch.zeros(top, dtype=torch.float64), torch.ones(top, dtype=torch.float64)

    def narrow(least: Tensor, most: Tensor) -> bool:
        lower.copy_(torch.maximum(lower, (least.cpu() - own).clamp_min(0)))
        upper.copy_(torch.minimum(upper, most.cpu() + own))
        return not Intruders(lower, upper, threshold).undecided

    tries = _limits(matrix, U, top, generator)
    while (limits := next(tries, None)) is not None and not narrow(*limits):
        pass
    return Intruders(lower, upper, threshold)


def _limits(
    matrix: RowSlabs, U: Tensor, top: int, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Limits of the largest |cos| of each row of U with the matrix's left singular vectors, ever costlier ones."""
    nothing, everything = U.new_zeros(len(U)), U.new_ones(len(U))
    for position, rank in enumerate(_partial_ranks(matrix, top)):
        known = _partial(matrix, rank, generator)
        cosines = known.U.to(torch.float64) @ U.T
        yield _from_known(cosines, known.uncertainty, complete=False)
        if position == 0 and matrix.shape[0] <= matrix.shape[1]:
            # Of a tall matrix the weight on its left null space would count as if it were one vector.
            yield nothing, _heaviest_point(matrix, U).sqrt().minimum(everything)
    if min(matrix.shape) <= WHOLE_SIDE:
        squares, vectors, uncertainty = _gram_vectors(matrix)
        if matrix.shape[0] < matrix.shape[1]:
            cosines = vectors.T @ U.T
        else:
            cosines = (vectors.T @ preimages(matrix, U).T) / squares.sqrt().clamp_min(1e-300)[:, None]
        yield _from_known(cosines, uncertainty, complete=True)


def _from_known(cosines: Tensor, uncertainty: Tensor, *, complete: bool) -> tuple[Tensor, Tensor]:
    """Limits of the largest |cos| from those with the vectors that are determined; the rest share what is left."""
    certain = uncertainty < DETERMINED
    known, slack = cosines[certain].abs(), uncertainty[certain][:, None]
    if not len(known):
        return cosines.new_zeros(cosines.shape[1]), cosines.new_ones(cosines.shape[1])
    held = (torch.linalg.vector_norm(known, dim=0) - torch.linalg.vector_norm(slack)).clamp_min(0)
    rest = torch.zeros_like(held) if complete and bool(certain.all()) else (1 - held.square()).clamp_min(0).sqrt()
    return (known - slack).amax(0).clamp_min(0), torch.maximum((known + slack).amax(0), rest).clamp_max(1)


def _partial_ranks(matrix: RowSlabs, top: int) -> list[int]:
    """Numbers of leading vectors that are much cheaper than all of them."""
    side = min(matrix.shape)
    if side <= PARTIAL_SIDE:
        return []
    return [rank for rank in (4 * top, 16 * top) if CERTIFIED_STEPS * block_size(rank) <= side // 2]


def _leading(matrix: RowSlabs, top: int, generator: torch.Generator | None) -> _Vectors:
    """The `top` leading vectors, from as many triplets as determine them."""
    known = None
    for rank in _partial_ranks(matrix, top):
        known = _partial(matrix, rank, generator)
        if bool((known.uncertainty[:top] < DETERMINED / 4).all()):
            break
    else:
        if known is None or min(matrix.shape) <= WHOLE_SIDE:
            squares, vectors, uncertainty = _gram_vectors(matrix)
            left = vectors.T[:top]
            if matrix.shape[0] >= matrix.shape[1]:
                left = images(matrix, left.contiguous()) / squares[:top].sqrt().clamp_min(1e-300)[:, None]
            return _Vectors(left, uncertainty[:top])
    return _Vectors(known.U[:top], known.uncertainty[:top])


def _partial(matrix: RowSlabs, rank: int, generator: torch.Generator | None) -> _Vectors:
    """Leading vectors by block Krylov iteration, each with its residual over its gap (Davis & Kahan)."""
    svd = truncated_svd(matrix, rank=rank, generator=generator)
    tail = svd.spectrum.tail
    assert tail is not None, "_partial_ranks asks for no whole spectrum"
    left, S = svd.U.T.contiguous(), svd.S.to(svd.U.device)
    residual = torch.cat([images(matrix, svd.Vh) - S[:, None] * left, preimages(matrix, left) - S[:, None] * svd.Vh], 1)
    distance = torch.linalg.vector_norm(residual.to(torch.float64), dim=1).cpu()
    squares = svd.S.square()
    # What the limit on the leading j squares leaves above the computed ones, any one of those j may have.
    excess = (tail.energy_upper[1:] - squares.cumsum(0)).clamp_min(0).flip(0).cummin(0).values.flip(0)
    least, most = (squares - tail.rounding).clamp_min(0).sqrt(), (squares + excess).sqrt()
    above = torch.cat([torch.tensor([math.inf], dtype=torch.float64), least[:-1]])
    below = torch.cat([most[1:], torch.tensor([tail.norm], dtype=torch.float64)])
    gap = torch.stack([above - svd.S, svd.S - below, svd.S]).amin(0)
    return _Vectors(left, _share(math.sqrt(2) * distance, gap).to(left.device))


def _gram_vectors(matrix: RowSlabs) -> tuple[Tensor, Tensor, Tensor]:
    """All squared singular values, the singular vectors of the short side, and how far off left vectors may be."""
    squares, vectors = eigensystem(gram(matrix))
    squares = squares.clamp_min(0)
    between = squares[:-1] - squares[1:]
    wall = squares.new_full((1,), math.inf)
    gap = torch.minimum(torch.cat([wall, between]), torch.cat([between, wall]))
    uncertainty = _share(2 * EIGEN_ROUNDING * squares[0].expand_as(gap), gap)
    if matrix.shape[0] >= matrix.shape[1]:
        uncertainty = uncertainty * _share(squares[0].expand_as(squares), squares).sqrt()
    return squares, vectors, uncertainty


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Part / whole; infinite where nothing is left of the whole."""
    return torch.where(whole > 0, part / whole.clamp_min(1e-300), math.inf)


def _heaviest_point(matrix: RowSlabs, U: Tensor) -> Float64[Tensor, " k"]:
    """Upper limits of the weight that each unit row of U has on any single eigenvalue of WWᵀ, by Lanczos.

    Every row has its own recurrence, orthogonalised against all of its earlier vectors; products are shared.
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
