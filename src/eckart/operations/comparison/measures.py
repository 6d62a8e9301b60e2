"""How two matrices of one shape relate: norms, cosine, and the alignment of their singular directions."""

import math

import torch
from torch import Tensor

from eckart.checkpoint import MatrixView
from eckart.engine import Execution
from eckart.linalg import LowRank, RowSlabs, overlap, principal_angles, truncated_svd
from eckart.linalg.block_sizes import NORM_CHUNK
from eckart.linalg.scaling import SAFE_SQUARES, frobenius_norm, normalized
from eckart.linalg.slabs import Streamed, as_slabs
from eckart.operations.comparison.result import Alignment, MatrixComparison, clamped


def compare_updates(
    name: str, a: LowRank, b: LowRank, *, directions: int, dtype: torch.dtype = torch.float64
) -> MatrixComparison:
    """Compare two low-rank updates of one matrix by their singular vectors, independent of how A and B are scaled.

    Args:
        name: of the module.
        a: shape `(out, in)`.
        b: same shape.
        directions: number of leading directions whose overlap is computed.
        dtype: dtype that the factors were stored in: it decides which directions are rounding.
    """
    (UA, SA, VA), (UB, SB, VB) = a.svd(), b.svd()
    norm_a, norm_b = (frobenius_norm(as_slabs(S[None])) for S in (SA, SB))
    # Over the norms, because the product of two of them may have no room in float64.
    inner = (SA / (norm_a or 1.0)) @ ((UA.T @ UB) * (VA @ VB.T)) @ (SB / (norm_b or 1.0))
    # Balanced factors first: stacked ones of very different lengths would lose the digits of the shorter.
    difference = (LowRank.from_svd(UA, SA, VA) - LowRank.from_svd(UB, SB, VB)).fro_norm
    i, j = directions_of(SA, a.shape, dtype), directions_of(SB, b.shape, dtype)
    return MatrixComparison(
        *(name, a.shape, norm_a, norm_b, difference, cosine(float(inner), norm_a, norm_b), (i, j)),
        outputs=align(UA[:, :i], UB[:, :j], directions=directions),
        inputs=align(VA[:i].T, VB[:j].T, directions=directions),
    )


def compare_matrices(
    a: RowSlabs, b: RowSlabs, *, view: MatrixView, directions: int, execution: Execution
) -> MatrixComparison:
    """Compare two matrices: norms and inner product in one pass, then the leading directions of each side in turn.

    Args:
        a: shape as stored.
        b: same shape.
        view: name and shape of the matrix.
        directions: number of leading directions whose angles and overlap are computed.
        execution: source of the random start blocks.
    """
    norm_a, norm_b, difference, inner = _products(a, b)
    left, right = [], []
    for matrix, norm in ((a, norm_a), (b, norm_b)):
        rank = min(directions, *matrix.shape)
        svd = truncated_svd(matrix, rank=rank, generator=execution.generator(view.name))
        count = directions_of(svd.S, matrix.shape, matrix.dtype) if norm > 0 else 0
        left.append(svd.U[:, :count])
        right.append(svd.Vh[:count].T)
    along = [align(*bases, directions=directions) for bases in (left, right)]
    outputs, inputs = reversed(along) if view.transposed else along
    return MatrixComparison(
        *(view.name, view.shape, norm_a, norm_b, difference, cosine(inner, norm_a, norm_b)),
        *((left[0].shape[1], left[1].shape[1]), outputs, inputs),
    )


def cosine(inner: float, norm_a: float, norm_b: float) -> float | None:
    """The cosine of two matrices from the inner product of both over their norms; None if one is zero."""
    return clamped(inner) if norm_a > 0 and norm_b > 0 else None


def directions_of(S: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> int:
    """Number of singular values above max(shape)·ε·σ₁, as in `Spectrum.numerical_rank`: the others are rounding.

    Args:
        S: descending.
        shape: of the matrix.
        dtype: dtype that its values were stored in.
    """
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return int((max(shape) * eps * S[0] < S).sum()) if len(S) else 0


def align(first: Tensor, second: Tensor, *, directions: int) -> Alignment | None:
    """Angles between the spans of two orthonormal bases, and the overlap of their leading columns."""
    if not (first.shape[1] and second.shape[1]):
        return None
    first, second = first.cpu(), second.cpu()
    return Alignment(principal_angles(first, second), overlap(first[:, :directions], second[:, :directions]))


def _products(a: RowSlabs, b: RowSlabs) -> tuple[float, float, float, float]:
    """‖A‖, ‖B‖, ‖A − B‖ and ⟨A, B⟩/(‖A‖‖B‖), subtracted first and summed in float64, in one pass over both."""
    sums = torch.zeros(4, dtype=torch.float64)
    for first, second in zip(a.slabs(), b.slabs(), strict=True):
        for x, y in zip(first.reshape(-1).split(NORM_CHUNK), second.reshape(-1).split(NORM_CHUNK), strict=True):
            x, y = x.to(torch.float64), y.to(torch.float64)  # noqa: PLW2901
            z = x - y
            sums += torch.stack([x @ x, y @ y, z @ z, x @ y]).cpu()
    *squares, inner = sums.tolist()
    wide = torch.float64 in (a.dtype, b.dtype)  # squares of any other dtype have room in float64
    if wide and not all(SAFE_SQUARES[0] < square < SAFE_SQUARES[1] for square in squares):
        return _extreme_products(a, b)
    norm_a, norm_b, difference = map(math.sqrt, squares)
    return norm_a, norm_b, difference, inner / (norm_a or 1.0) / (norm_b or 1.0)


def _extreme_products(a: RowSlabs, b: RowSlabs) -> tuple[float, float, float, float]:
    """The same for matrices whose squares may leave the range of float64, in more passes."""
    norm_a, norm_b, difference = map(frobenius_norm, (a, b, _difference(a, b)))
    (first, _), (second, _) = normalized(a, norm_a), normalized(b, norm_b)
    sizes = [frobenius_norm(matrix) or 1.0 for matrix in (first, second)]
    pairs = zip(first.slabs(), second.slabs(), strict=True)
    inner = sum(float((x.to(torch.float64) / sizes[0] * y.to(torch.float64)).sum()) for x, y in pairs) / sizes[1]
    return norm_a, norm_b, difference, inner


def _difference(a: RowSlabs, b: RowSlabs) -> Streamed:
    """A − B in float64."""
    return Streamed(
        a.shape,
        torch.float64,
        a.device,
        lambda: (x.to(torch.float64) - y.to(torch.float64) for x, y in zip(a.slabs(), b.slabs(), strict=True)),
    )
