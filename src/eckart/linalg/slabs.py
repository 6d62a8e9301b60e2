"""A matrix met a slab of rows at a time: the one way every algorithm here reads its input.

A weight in memory is one slab; a weight on disk, or the difference of two, yields slabs as often as it is asked.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

SLAB_BYTES = 8 * 2**20  # float32 bytes of one slab: large enough for GEMM, small beside any cache or budget
NORM_CHUNK = 2**18  # values upcast at a time to be squared in float64: they stay in cache


@runtime_checkable
class RowSlabs(Protocol):
    """A real matrix that can be read, repeatedly, as consecutive blocks of rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the values were stored in, before any upcast."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the slabs arrive."""
        ...

    def slabs(self) -> Iterator[Tensor]:
        """Consecutive row blocks from the first row to the last; any floating dtype, finite values."""
        ...


class InMemory:
    """A matrix that lies in memory, seen as `RowSlabs`; a slab is a view, never a copy.

    Args:
        weight: the matrix.
        stored: the dtype that it was read in, where `weight` is an upcast of it.
    """

    def __init__(self, weight: Tensor, *, stored: torch.dtype | None = None) -> None:
        if weight.ndim != 2 or not weight.is_floating_point():
            msg = f"weight must be a real floating-point matrix, got {weight.dtype} of shape {tuple(weight.shape)}"
            raise ValueError(msg)
        self.weight = weight.detach()
        self.dtype = stored or weight.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.weight.shape
        return rows, columns

    @property
    def device(self) -> torch.device:
        """The device of the tensor."""
        return self.weight.device

    def slabs(self) -> Iterator[Tensor]:
        """The whole matrix in blocks of at most `SLAB_BYTES`, or at once where no upcast will copy it."""
        rows, columns = self.shape
        copied = self.weight.dtype not in (torch.float32, torch.float64)
        yield from self.weight.split(rows_per_slab(columns) if copied else max(rows, 1))


Matrix = Tensor | np.ndarray | RowSlabs


def as_slabs(weight: Matrix) -> RowSlabs:
    """Any weight as `RowSlabs`: a torch tensor or NumPy array in memory, or something that already is.

    Raises:
        ValueError: `weight` is not a real floating-point matrix.
    """
    if isinstance(weight, np.ndarray):
        # torch takes arrays in the machine's byte order only, and warns of one that it could not write to.
        weight = torch.from_numpy(np.require(weight, weight.dtype.newbyteorder("="), ["C", "W"]))
    return InMemory(weight) if isinstance(weight, Tensor) else weight


def rows_per_slab(columns: int) -> int:
    """Rows whose float32 values fill one slab of `SLAB_BYTES`."""
    return max(1, SLAB_BYTES // (4 * max(columns, 1)))


def compute_dtype(matrix: RowSlabs) -> torch.dtype:
    """The dtype that products with the matrix are taken in: float32, or float64 where it is stored so."""
    return torch.float64 if matrix.dtype == torch.float64 else torch.float32


def materialize(matrix: RowSlabs) -> Tensor:
    """The whole matrix in its `compute_dtype`, filled slab by slab.

    Returns:
        shape `matrix.shape`; the tensor itself where it already lies in memory in that dtype.
    """
    if isinstance(matrix, InMemory):
        return matrix.weight.to(compute_dtype(matrix))
    dense = torch.empty(matrix.shape, dtype=compute_dtype(matrix), device=matrix.device)
    start = 0
    for slab in matrix.slabs():
        dense[start : start + len(slab)] = slab
        start += len(slab)
    return dense


def squared_norm(matrix: RowSlabs) -> float:
    """Squared Frobenius norm, accumulated in float64.

    Raises:
        ValueError: the matrix holds a value that is not finite.
    """
    total = 0.0
    for slab in matrix.slabs():
        for part in slab.reshape(-1).split(NORM_CHUNK):
            wide = part.to(torch.float64)
            total += float(torch.dot(wide, wide))
    if not np.isfinite(total):
        bad = sum(int((~torch.isfinite(slab)).sum()) for slab in matrix.slabs())
        msg = f"weight holds {bad} values that are not finite" if bad else "weight is too large to square in float64"
        raise ValueError(msg)
    return total
