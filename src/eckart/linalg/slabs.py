"""A matrix read in slabs of rows: how every algorithm in this package reads its input.

A weight in memory is one slab; a weight on disk, or the difference of two, yields its slabs as often as needed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg.block_sizes import SLAB_BYTES


@runtime_checkable
class RowSlabs(Protocol):
    """A real matrix that can be read, repeatedly, as consecutive blocks of rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the values were stored, before any upcast."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the slabs."""
        ...

    def slabs(self) -> Iterator[Tensor]:
        """Consecutive row blocks from the first row to the last; any floating dtype, finite values."""
        ...


class InMemory:
    """A matrix in memory as `RowSlabs`; a slab is a view, never a copy.

    Args:
        weight: the matrix.
        stored: the dtype in which it was stored, if `weight` is an upcast.
    """

    def __init__(self, weight: Tensor, *, stored: torch.dtype | None = None) -> None:
        if weight.ndim != 2 or not weight.is_floating_point():
            msg = f"`weight` must be a real floating-point matrix, got {weight.dtype} of shape {tuple(weight.shape)}"
            raise OptionError(msg)
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
        """The matrix in blocks of at most `SLAB_BYTES`, or in one if no upcast will copy it."""
        rows, columns = self.shape
        copied = self.weight.dtype not in (torch.float32, torch.float64)
        if not copied or rows <= rows_per_slab(columns):
            yield self.weight
        else:
            yield from self.weight.split(rows_per_slab(columns))


@dataclass(frozen=True)
class Streamed:
    """A matrix whose row blocks are computed in every pass, as `RowSlabs`.

    Attributes:
        shape: rows and columns.
        dtype: the dtype in which the values were stored.
        device: the device of the blocks.
        blocks: starts a pass over consecutive row blocks.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    blocks: Callable[[], Iterator[Tensor]]

    def slabs(self) -> Iterator[Tensor]:
        """The row blocks of one pass."""
        return self.blocks()


Matrix = Tensor | np.ndarray | RowSlabs | Sequence[Sequence[float]]


def as_slabs(weight: Matrix) -> RowSlabs:
    """Any weight as `RowSlabs`: a torch tensor, a NumPy array or a list of rows; `RowSlabs` are returned unchanged.

    Raises:
        OptionError: `weight` is not a real floating-point matrix.
    """
    if hasattr(weight, "slabs"):  # the protocol's own check takes longer than a small matrix
        return cast("RowSlabs", weight)
    if isinstance(weight, list | tuple):
        try:
            weight = np.array(weight, dtype=np.float64)
        except (TypeError, ValueError) as error:
            msg = f"`weight` must be a matrix: a list of rows of numbers, all of the same length ({error})"
            raise OptionError(msg) from None
    if isinstance(weight, np.ndarray) and weight.dtype.kind in "biufc":
        # torch accepts only arrays in the machine's byte order, and warns about read-only ones.
        weight = torch.from_numpy(np.require(weight, weight.dtype.newbyteorder("="), ["C", "W"]))
    if not isinstance(weight, Tensor):
        what = f"an array of {weight.dtype}" if isinstance(weight, np.ndarray) else type(weight).__name__
        msg = f"`weight` must be a torch tensor, a NumPy array of numbers or a list of rows, got {what}"
        raise OptionError(msg)
    return InMemory(weight)


def rows_per_slab(columns: int) -> int:
    """Number of rows whose float32 values fill a slab of `SLAB_BYTES`."""
    return max(1, SLAB_BYTES // (4 * max(columns, 1)))


def compute_dtype(matrix: RowSlabs) -> torch.dtype:
    """The dtype of products with the matrix: float32, or float64 if the matrix is stored in float64."""
    return torch.float64 if matrix.dtype == torch.float64 else torch.float32


def materialize(matrix: RowSlabs) -> Tensor:
    """The entire matrix in its `compute_dtype`, filled slab by slab.

    Returns:
        shape `matrix.shape`; the tensor itself if it is already in memory in that dtype.
    """
    if isinstance(matrix, InMemory):
        return matrix.weight.to(compute_dtype(matrix))
    dense = torch.empty(matrix.shape, dtype=compute_dtype(matrix), device=matrix.device)
    start = 0
    for slab in matrix.slabs():
        if len(slab) == len(dense):
            return slab.to(dense)
        dense[start : start + len(slab)] = slab
        start += len(slab)
    return dense
