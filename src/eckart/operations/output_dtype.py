"""The data type of written weights, by its name or as a torch dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eckart.checkpoint import DType
from eckart.errors import OptionError

if TYPE_CHECKING:
    import torch

WRITTEN = ("float32", "bfloat16", "float16", "float64")


def float_dtype(dtype: DType | torch.dtype | str | None) -> DType | None:
    """The data type to write; None, which keeps the source's, for None.

    Raises:
        OptionError: weights are not written in that data type.
    """
    if dtype is None:
        return None
    written = DType.of(dtype)
    if written.name not in WRITTEN:
        msg = f"`dtype` must be one of {', '.join(WRITTEN)}, got {written}"
        raise OptionError(msg)
    return written
