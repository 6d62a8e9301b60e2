"""Memory for large results: page faults can take longer than computing them."""

import numpy as np
import torch
from torch import Tensor

_HUGE = 2**22  # bytes from which NumPy asks for huge pages
_ALIGNMENT = 64  # bytes, as torch allocates: vector instructions are slower across cache lines


def uninitialized(count: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Uninitialized values, on the CPU from NumPy, which asks for huge pages.

    Args:
        count: number of values.
        dtype: of the values.
        device: of the tensor.
    """
    nbytes = count * dtype.itemsize
    if torch.device(device).type != "cpu" or nbytes < _HUGE:
        return torch.empty(count, dtype=dtype, device=device)
    data = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -data.ctypes.data % _ALIGNMENT
    return torch.from_numpy(data[start : start + nbytes]).view(dtype)
