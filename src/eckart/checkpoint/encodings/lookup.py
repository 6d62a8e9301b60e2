"""Codes of 4 or 8 bits as the float32 numbers that they stand for, looked up two at a time."""

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def float8_values(codes: "Tensor") -> "Tensor":
    """The values of 8-bit floating-point numbers of any type, float32, of the same shape."""
    import torch

    if codes.numel() % 2:
        return codes.to(torch.float32)
    data = codes.contiguous().view(torch.uint8).view(-1)
    return looked_up(data.view(torch.uint16), _float8_pairs(codes.dtype)).view(codes.shape)


def looked_up(index: "Tensor", pairs: "Tensor") -> "Tensor":
    """Both values of each number, float32; a pair is one integer of 8 bytes, so that one lookup copies both."""
    import torch

    return torch.index_select(pairs, 0, index.to(torch.int32)).view(torch.float32)


def pairs_of(values: "Tensor") -> "Tensor":
    """Every pair of values, by the number whose low half is the code of the first, and its high half of the second."""
    import torch

    return torch.cartesian_prod(values, values).flip(1).contiguous().view(torch.int64).view(-1)


@lru_cache(maxsize=4)
def _float8_pairs(dtype: "torch.dtype") -> "Tensor":
    import torch

    return pairs_of(torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32))
