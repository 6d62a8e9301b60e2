"""Scaling by powers of two, which is exact: squares and products then neither overflow nor vanish.

Every decomposition starts here. A matrix whose norm is in the range where its dtype is safe is returned unchanged and
costs nothing; any other is divided by the power of two at or below its norm. Because nothing is rounded, the
decomposition of 2ᵏ·W is 2ᵏ times that of W.
"""

import math

import torch
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg.block_sizes import NORM_CHUNK
from eckart.linalg.finite import require_finite
from eckart.linalg.slabs import InMemory, RowSlabs, Streamed, compute_dtype, materialize

# Norms up to 2^±k are safe: fourth powers of singular values are computed in the dtype of products.
SAFE_EXPONENTS = {torch.float32: 20, torch.float64: 200}
MOST_AT_ONCE = 1000  # exponent of a factor that is a normal float64
SAFE_SQUARES = 1e-100, 1e100  # a sum of squares in this range lost nothing, of any dtype up to float32


def exponent_of(size: float, safe: int = SAFE_EXPONENTS[torch.float64]) -> int:
    """The exponent of the power of two at or below a size; 0 for zero and for sizes from 2^-safe to 2^safe."""
    exponent = math.frexp(size)[1] - 1
    return exponent if size > 0 and abs(exponent) > safe else 0


def shifted(values: Tensor, exponent: int) -> Tensor:
    """`values`·2^exponent, exact unless the result is too large or subnormal; the same tensor for 0."""
    if exponent == 0:
        return values
    wide = values.to(torch.float64)
    while exponent:  # in steps, because a power of two may be too large itself
        step = max(-MOST_AT_ONCE, min(MOST_AT_ONCE, exponent))
        wide, exponent = wide * 2.0**step, exponent - step
    return wide.to(values.dtype)


def shifted_number(value: float, exponent: int) -> float:
    """`value`·2^exponent; infinite where float64 ends."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.copysign(math.inf, value)


def shifted_matrix(matrix: RowSlabs, exponent: int) -> Streamed:
    """A matrix times 2^exponent, in its `compute_dtype`."""
    dtype = compute_dtype(matrix)
    return Streamed(
        matrix.shape,
        matrix.dtype,
        matrix.device,
        lambda: (shifted(slab.to(dtype), exponent) for slab in matrix.slabs()),
    )


def normalized(matrix: RowSlabs, norm: float) -> tuple[RowSlabs, int]:
    """The matrix in the range that is safe to decompose.

    Args:
        matrix: shape `(m, n)`.
        norm: its Frobenius norm.

    Returns:
        `(scaled, exponent)`: the matrix is `scaled`·2^exponent. Usually the matrix itself and 0.
    """
    exponent = exponent_of(norm, SAFE_EXPONENTS[compute_dtype(matrix)])
    if exponent == 0:
        return matrix, 0
    scaled = shifted_matrix(matrix, -exponent)
    return (InMemory(materialize(scaled), stored=matrix.dtype) if isinstance(matrix, InMemory) else scaled), exponent


def frobenius_norm(matrix: RowSlabs) -> float:
    """‖W‖_F, accumulated in float64: one pass, or three where the squares leave the range of float64.

    Raises:
        NotFiniteError: the matrix contains NaN or Inf.
        OptionError: its norm is larger than any float64.
    """
    total = _sum_of_squares(matrix)
    if SAFE_SQUARES[0] < total < SAFE_SQUARES[1]:
        return math.sqrt(total)
    largest = _largest(matrix)
    if not math.isfinite(largest):
        require_finite(torch.tensor(largest), "`weight`", rows=matrix.slabs)
    exponent = math.frexp(largest)[1]
    return require_float64(shifted_number(math.sqrt(_sum_of_squares(shifted_matrix(matrix, -exponent))), exponent))


def require_float64(norm: float, name: str = "`weight`") -> float:
    """A Frobenius norm that was scaled back, unchanged.

    Raises:
        OptionError: it is larger than any float64.
    """
    if math.isinf(norm):
        msg = f"{name} has a Frobenius norm above 1.8e308, the largest float64: divide it by a power of two first"
        raise OptionError(msg)
    return norm


def normalized_tensor(values: Tensor) -> tuple[Tensor, int]:
    """Values in float64 whose squares and products are in range, and the exponent by which they were divided."""
    wide = values.detach().to(torch.float64)
    exponent = exponent_of(largest_of(wide))
    return shifted(wide, -exponent), exponent


def largest_of(values: Tensor) -> float:
    """The largest absolute value of a tensor; 0 for an empty one, NaN if it contains one."""
    if not values.numel():
        return 0.0
    least, most = torch.aminmax(values.detach())
    return max(abs(float(least)), abs(float(most)))


def _sum_of_squares(matrix: RowSlabs) -> float:
    total = 0.0
    for slab in matrix.slabs():
        for part in slab.reshape(-1).split(NORM_CHUNK):
            wide = part.to(torch.float64)
            total += float(torch.dot(wide, wide))
    return total


def _largest(matrix: RowSlabs) -> float:
    """The largest absolute value; NaN if there is one."""
    largest = 0.0
    for slab in matrix.slabs():
        if slab.numel():
            least, most = torch.aminmax(slab.to(compute_dtype(matrix)))
            size = max(abs(float(least)), abs(float(most)))
            largest = size if math.isnan(size) or size > largest else largest
            if math.isnan(largest):
                break
    return largest
