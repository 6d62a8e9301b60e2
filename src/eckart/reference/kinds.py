"""Every kind of layer as the linear one: what a convolution, an embedding or a Conv1D multiplies with a matrix.

| kind | matrix (out, in) | rows x |
|---|---|---|
| linear | weight | inputs |
| Conv1D of GPT-2, weight (in, out) | weight.T | inputs |
| embedding, weight (vocabulary, dimension) | weight.T | one_hot(tokens) |
| convolution, weight (out, channels, k, k) | weight.reshape(out, -1) | patches(shape, ...).take(images) |

The factors are those of the matrix: of a convolution lora_A (rank, channels, k, k) is reshaped as its weight is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eckart.reference.lora import Array


def one_hot(tokens: NDArray[np.integer], vocabulary: int) -> Array:
    """A row for each token, shape `(n, vocabulary)`, with a one in its column: times a matrix, it looks a row up."""
    return np.eye(vocabulary)[tokens.ravel()]


@dataclass(frozen=True)
class Gather:
    """Rows whose entries are entries of another array, or zero where a window hangs over its edge.

    Attributes:
        index: shape `(n, in)`; where in the flattened array each entry is; one past its end stands for zero.
        shape: of the array.
    """

    index: NDArray[np.intp]
    shape: tuple[int, ...]

    def take(self, array: NDArray) -> NDArray:
        """The rows, shape `(n, in)`; of a keep mask too: to drop an input drops it in every window that sees it."""
        return np.append(array.ravel(), array.dtype.type(0))[self.index]

    def put(self, rows: Array) -> Array:
        """The transpose of `take`, which a gradient takes back: whatever was read from an entry is added up in it."""
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
    """The windows that a convolution sees, one a row, in the order of its outputs.

    Args:
        shape: of the input, `(batch, channels, length)` or `(batch, channels, height, width)`.
        kernel: sides of the window, such as `(3, 3)`.
        stride: from one window to the next.
        padding: zeros around the input.
        dilation: from one entry of a window to the next.

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
