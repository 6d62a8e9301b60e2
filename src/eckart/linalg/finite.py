"""The one check that tensors contain only finite numbers."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from eckart.errors import NotFiniteError


def require_finite(
    tensor: Tensor, name: str, *, rows: Callable[[], Iterable[Tensor]] | None = None, remedy: str = ""
) -> None:
    """Refuse a tensor that contains NaN or Inf.

    Args:
        tensor: any shape and dtype.
        name: what the message calls it.
        rows: reads all rows of what `tensor` is a part of, so that the message counts all of its values.
        remedy: what to do about it, at the end of the message.

    Raises:
        NotFiniteError: the message says how many values are NaN or Inf.
    """
    # NaN and Inf survive a sum, which is one pass without a mask; a sum that overflowed proves nothing.
    if torch.isfinite(tensor.sum(dtype=torch.float32)) or not (bad := count_non_finite([tensor])):
        return
    total = bad if rows is None else count_non_finite(rows())
    msg = f"{name} contains {total:,} values that are NaN or Inf" + (f"; {remedy}" if remedy else "")
    raise NotFiniteError(msg)


def count_non_finite(tensors: Iterable[Tensor]) -> int:
    """How many values of some tensors are NaN or Inf."""
    return sum(int((~torch.isfinite(_comparable(tensor))).sum()) for tensor in tensors)


def _comparable(tensor: Tensor) -> Tensor:
    """The tensor in a dtype that torch compares: its one-byte floats are only stored."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor
