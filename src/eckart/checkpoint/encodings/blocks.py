"""Rows of a weight computed in blocks, so that what is between codes and values stays in the processor's cache."""

import math
from typing import TYPE_CHECKING

from eckart.checkpoint.checkpoint import Rows
from eckart.checkpoint.dtypes import FLOAT32, DType

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 2**19  # values


def in_blocks(rows: Rows, shape: tuple[int, ...], dtype: DType = FLOAT32) -> Rows:
    """The same rows, computed a block at a time.

    Args:
        rows: computes entries of the first dimension from as many of the stored tensors.
        shape: of the weight.
        dtype: of its values.
    """
    columns = math.prod(shape[1:])
    step = max(1, _BLOCK // max(columns, 1))

    def computed(start: int, stop: int) -> "Tensor":
        if stop - start <= step:
            return rows(start, stop)
        from eckart.linalg.uninitialized import uninitialized

        result = uninitialized((stop - start) * columns, dtype.torch).view(stop - start, *shape[1:])
        for first in range(start, stop, step):
            last = min(first + step, stop)
            result[first - start : last - start] = rows(first, last)
        return result

    return computed
