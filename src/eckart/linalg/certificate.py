"""How much a better basis could gain: a certified bound on the energy of any rank-r approximation.

For an orthonormal basis V with Ritz values s_i², coupling C = V·WᵀW·V⊥ and any d ≥ ‖W(I − VᵀV)‖₂², and for every
t > d,  WᵀW ≼ diag(S² + CCᵀ/(t − d), t·I)  in the basis (V, V⊥), because the difference has a zero Schur complement.
So Σ_{i≤r} σ_i² ≤ Σ_{i≤r} max(λ_i(S² + CCᵀ/(t − d)), t), and the minimum over several t is used.

d comes from block Lanczos on the residual with random starts (Kuczyński & Woźniakowski 1992): after k steps with p
starts the largest Ritz value ξ satisfies ‖·‖² ≤ ξ/(1 − ε) except with probability (1.648·√n·e^{−√ε(2k−1)})^p. Few
steps suffice where d is far below the r-th value; otherwise more follow, each result failing with half the probability.
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from eckart.linalg.krylov import (
    CERTIFIED_STEPS,
    BlockKrylov,
    PartialSVD,
    images,
    orthonormalize,
    partial_svd,
    preimages,
    products,
)
from eckart.linalg.scaling import exponent_of, shifted, shifted_number
from eckart.linalg.slabs import Matrix, as_slabs, rows_per_slab
from eckart.linalg.spectra import Spectrum, Tail
from eckart.linalg.symmetric import eigenvalues

STARTS = 16
FEW_STEPS = 4
LANCZOS_STEPS = 6
FAR_BELOW = 0.7  # of the r-th squared value: a smaller d would tighten the bounds little
FAILURE_PROBABILITY = 1e-6
PROBES = 8
PROBED = 4.0  # safety factor on the probed rounding: too small with probability under 2e-4
LEAST_ROUNDING = {
    torch.float32: 1e-7,
    torch.float64: 1e-12,
}  # smallest rounding of products assumed, as a share of ‖W‖²


def certify(svd: PartialSVD, *, generator: torch.Generator | None = None) -> Tail:
    """Bounds on what the triplets of `svd` leave out; they hold except with probability `FAILURE_PROBABILITY`.

    The cost is about half of that of the triplets.

    Args:
        svd: leading triplets with the basis they were computed from.
        generator: source of the random starts, on the CPU.

    Returns:
        `Tail(energy_upper, norm, rounding, failure_probability)`.
    """
    basis, rank = svd.basis, len(svd.S)
    norm = shifted_number(svd.fro_norm, -svd.exponent)  # of the matrix that the basis is of
    total = norm**2
    outward = basis.look_beyond() if basis.coupling is None else basis.coupling
    squares, rotation = basis.ritz()
    slack = rounding_energy(basis, norm, generator=generator)
    least = float(squares[rank - 1]) if rank <= len(squares) else 0.0
    beyond = residual_norm(basis, enough=math.sqrt(FAR_BELOW * least), generator=generator) ** 2
    beyond = min(beyond, max(0.0, total - float(squares.sum()))) + slack
    coupling = rotation.T @ outward.to(torch.float64)
    energy, following = _energy_limits(squares, coupling @ coupling.T, beyond=beyond, rank=rank)
    energy = torch.cat([torch.zeros(1, dtype=torch.float64), energy.cpu() + slack]).clamp_max(total)
    # From the units of the basis to those of a `Spectrum` of this norm.
    shift = 2 * (svd.exponent - exponent_of(svd.fro_norm))
    return Tail(
        shifted(energy, shift),
        shifted_number(math.sqrt(following + slack), svd.exponent),
        shifted_number(slack, shift),
        FAILURE_PROBABILITY,
    )


def partial_spectrum(weight: Matrix, *, rank: int, generator: torch.Generator | None = None) -> Spectrum:
    """The leading `rank` singular values with certified bounds on the rest.

    Args:
        weight: shape `(out_features, in_features)`; torch, NumPy or row slabs.
        rank: number of singular values, from 1 to `min(weight.shape)`.
        generator: source of randomness, on the CPU.

    Returns:
        A `Spectrum` with `tail`; statistics that depend on the rest are intervals.

    Raises:
        OptionError: `rank` is out of range, or `weight` is not a finite matrix of floats.
    """
    matrix = as_slabs(weight)
    svd = partial_svd(matrix, rank=rank, steps=CERTIFIED_STEPS, generator=generator)
    return Spectrum(svd.S, matrix.shape, svd.fro_norm, matrix.dtype, certify(svd, generator=generator))


def residual_norm(basis: BlockKrylov, *, enough: float = 0.0, generator: torch.Generator | None = None) -> float:
    """Upper bound on ‖W(I − VᵀV)‖₂; it holds except with probability `FAILURE_PROBABILITY`.

    A bound below `enough` is not improved further.
    """
    matrix, columns = basis.matrix, basis.matrix.shape[1]
    outside = columns - len(basis.V)
    if outside <= 0:
        return 0.0
    start = torch.randn(min(STARTS, outside), columns, dtype=basis.dtype, generator=generator).to(matrix.device)
    block, _ = orthonormalize(start, basis.V)
    vectors, seen = block, basis.images[:0]
    for step in range(1, LANCZOS_STEPS + 1):
        if step in (FEW_STEPS, LANCZOS_STEPS):
            seen = torch.cat([seen, images(matrix, block)])
            bound = _lanczos_bound(seen, step, outside)
            if bound < enough or step == LANCZOS_STEPS:
                return bound
            reached = preimages(matrix, seen[-len(block) :])
        else:
            image, reached = products(matrix, block)
            seen = torch.cat([seen, image])
        block, _ = orthonormalize(reached, torch.cat([basis.V, vectors]))
        if not len(block):
            break
        vectors = torch.cat([vectors, block])
    return _lanczos_bound(seen, LANCZOS_STEPS, outside)


def _lanczos_bound(seen: Tensor, steps: int, outside: int) -> float:
    """The bound after some Lanczos steps, whose vectors' products with W, as rows, are given."""
    wide = seen.to(torch.float64)
    largest = float(eigenvalues(wide @ wide.T)[0])
    exponent = math.log(1.648 * math.sqrt(outside)) - math.log(FAILURE_PROBABILITY / 2) / STARTS
    shortfall = (exponent / (2 * steps - 1)) ** 2
    if len(seen) >= outside:
        shortfall = 0.0  # the Krylov space is the entire space outside V
    return math.sqrt(max(largest, 0.0) / (1 - shortfall)) if shortfall < 1 else math.inf


def rounding_energy(basis: BlockKrylov, fro_norm: float, *, generator: torch.Generator | None = None) -> float:
    """Energy by which rounding in the products V·Wᵀ may have changed the computed values.

    Random combinations of the products are recomputed in float64: the difference measures the rounding, even where it
    does not average out, as in a matrix of equal entries.
    """
    least = LEAST_ROUNDING[basis.dtype] * fro_norm**2
    if basis.dtype == torch.float64 or not len(basis.V):
        return least
    weights = torch.randn(PROBES, len(basis.V), dtype=torch.float64, generator=generator).to(basis.V.device)
    rows, seen = weights @ basis.V.to(torch.float64), weights @ basis.images.to(torch.float64)
    missed, start = 0.0, 0
    for slab in basis.matrix.slabs():
        for part in slab.split(rows_per_slab(slab.shape[1])):
            exact = rows @ part.to(torch.float64).T
            missed += float((exact - seen[:, start : start + len(part)]).square().sum())
            start += len(part)
    rounding = PROBED * math.sqrt(missed / PROBES)
    return max(least, 2 * fro_norm * rounding + rounding**2)


def _energy_limits(
    squares: Tensor, coupled: Tensor, *, beyond: float, rank: int
) -> tuple[Float64[Tensor, " r"], float]:
    """Lowest upper bounds, over trial values of t, on Σ_{i≤j} σ_i² for j = 1…rank and on σ_{rank+1}²."""
    trials = {float(square) for i in (rank // 8, rank - 1) for square in squares[i : i + 1]}
    energy = torch.full((rank,), math.inf, dtype=torch.float64, device=squares.device)
    following = math.inf
    for t in {*trials, 1.5 * beyond, 1.1 * beyond}:
        if t < 1.05 * beyond or t == 0:
            continue  # too close to d, where rounding in the coupling would be magnified
        values = eigenvalues(torch.diag(squares) + coupled / (t - beyond))[: rank + 1]
        limits = torch.cat([values, values.new_zeros(rank + 1 - len(values))]).clamp_min(t)
        energy = torch.minimum(energy, limits[:rank].cumsum(0))
        following = min(following, float(limits[rank]))
    return energy, following if rank < len(squares) else min(following, beyond)
