"""A matrix met a slab of rows at a time: the one way every algorithm here reads its input.

A weight in memory is one slab; a weight on disk, or the difference of two, yields slabs as often as it is asked.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

SLAB_BYTES = 32 * 2**20  # float32 bytes of one slab: large enough for GEMM, small beside any budget


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
