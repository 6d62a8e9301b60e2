"""The one check that tensors contain only finite numbers, and that a dtype can represent them."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from eckart.errors import NotFiniteError

REMEDY = "; use `dtype=bfloat16` or `dtype=float32`"


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
    if all_finite(tensor):
        return
    total = count_non_finite([tensor] if rows is None else rows())
    msg = f"{name} contains {total:,} values that are NaN or Inf" + (f"; {remedy}" if remedy else "")
    raise NotFiniteError(msg)


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or Inf."""
    # Both survive a sum, which is one pass without a mask; a sum that overflowed proves nothing.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or not count_non_finite([tensor])


def is_held(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether a dtype can represent all values of a tensor; False if one is NaN or Inf."""
    limit = torch.finfo(dtype).max
    # If one value is NaN, so are both of these, and every comparison is false.
    least, most = torch.aminmax(_comparable(values)) if values.numel() else (0, 0)
    return bool(-limit <= least and most <= limit)


def too_large(name: str, dtype: torch.dtype, largest: float | None = None) -> str:
    """The message for values that are too large for a dtype, with the dtypes that can represent them.

    Args:
        name: what the message calls the values.
        dtype: too narrow for them.
        largest: the largest absolute value, if it is known.
    """
    shown = f"{name}: a value becomes {largest:.4g}, more than" if largest else f"{name}: its values are too large for"
    verb = " holds" if largest else ""
    beyond = dtype in (torch.float32, torch.bfloat16) or (largest or 0) > torch.finfo(torch.bfloat16).max
    remedy = "" if dtype == torch.float64 else "; use `dtype=float64`" if beyond else REMEDY
    return f"{shown} {str(dtype).removeprefix('torch.')}{verb}{remedy}"


def too_small(name: str, dtype: torch.dtype, norm: float) -> str:
    """The message for factors that a dtype rounds to zero, with the dtypes that can represent them.

    Args:
        name: what the message calls the factors.
        dtype: too coarse for them.
        norm: of their product, which is not zero.
    """
    beyond = dtype in (torch.float32, torch.bfloat16) or norm**0.5 < torch.finfo(torch.float32).tiny
    remedy = "" if dtype == torch.float64 else "; use `dtype=float64`" if beyond else REMEDY
    return f"{name}: its factors become zero in {str(dtype).removeprefix('torch.')}, but their product is not{remedy}"


def count_non_finite(tensors: Iterable[Tensor]) -> int:
    """How many values of some tensors are NaN or Inf."""
    return sum(int((~torch.isfinite(_comparable(tensor))).sum()) for tensor in tensors)


def _comparable(tensor: Tensor) -> Tensor:
    """The tensor in a dtype that torch compares: its one-byte floats are only stored."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor
