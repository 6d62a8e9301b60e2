"""Every kind of layer as a linear one: the rows that a convolution, an embedding or a Conv1D multiplies by a matrix.

| kind | matrix (out, in) | rows x |
|---|---|---|
| linear | weight | inputs |
| Conv1D of GPT-2, weight (in, out) | weight.T | inputs |
| embedding, weight (vocabulary, dimension) | weight.T | one_hot(tokens) |
| convolution, weight (out, channels, k, k) | weight.reshape(out, -1) | patches(shape, ...).take(images) |

The factors are those of the matrix: lora_A (rank, channels, k, k) of a convolution is reshaped as its weight is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eckart.reference.lora import Array


def one_hot(tokens: NDArray[np.integer], vocabulary: int) -> Array:
    """One row per token, shape `(n, vocabulary)`, with a one in its column: multiplied by a matrix it selects a row."""
    return np.eye(vocabulary)[tokens.ravel()]


@dataclass(frozen=True)
class Gather:
    """Rows whose entries are entries of another array, or zero where a window extends beyond its edge.

    Attributes:
        index: shape `(n, in)`; position of each entry in the flattened array; one past its end stands for zero.
        shape: shape of the array.
    """

    index: NDArray[np.intp]
    shape: tuple[int, ...]

    def take(self, array: NDArray) -> NDArray:
        """The rows, shape `(n, in)`. Applied to a keep mask, it drops an input in every window that contains it."""
        return np.append(array.ravel(), array.dtype.type(0))[self.index]

    def put(self, rows: Array) -> Array:
        """The transpose of `take`, for gradients: everything read from an entry is summed in it."""
        size = int(np.prod(self.shape))
        total = np.zeros(size + 1)
        np.add.at(total, self.index, rows)
        return total[:size].reshape(self.shape)


def patches(
    shape: tuple[int, ...],
    kernel: Sequence[int],
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Gather:
    """The windows of a convolution, one per row, in the order of its outputs.

    Args:
        shape: shape of the input, `(batch, channels, length)` or `(batch, channels, height, width)`.
        kernel: sides of the window, such as `(3, 3)`.
        stride: distance from one window to the next.
        padding: zeros around the input.
        dilation: distance from one entry of a window to the next.

    Returns:
        `Gather` of `batch · positions` rows of `channels · k · k` entries.
    """
    size = int(np.prod(shape))
    axes = tuple(range(2, len(shape)))
    border = [(0, 0), (0, 0), *((padding, padding) for _ in axes)]
    where = np.pad(np.arange(size).reshape(shape), border, constant_values=size)
    reach = tuple(dilation * (side - 1) + 1 for side in kernel)
    windows = np.lib.stride_tricks.sliding_window_view(where, reach, axis=axes)
    windows = windows[(..., *(slice(None, None, stride) for _ in axes), *(slice(None, None, dilation) for _ in axes))]
    index = np.moveaxis(windows, 1, 1 + len(axes)).reshape(-1, shape[1] * int(np.prod(kernel)))
    return Gather(index, shape)
