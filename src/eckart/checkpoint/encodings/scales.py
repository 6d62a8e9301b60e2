"""Scales of codes: finite, not zero unless what they scale is, and as powers of two."""

from typing import TYPE_CHECKING

from eckart.checkpoint.encodings.encoded import StoredModule

if TYPE_CHECKING:
    from torch import Tensor


def times(module: StoredModule, leaf: str, values: "Tensor", scales: "Tensor") -> "Tensor":
    """Values times their scales.

    Args:
        module: the module that stores the scales.
        leaf: their name in it.
        values: float32; overwritten.
        scales: float32, of a shape that is broadcast to that of the values.

    Raises:
        FileFormatError: a scale is NaN or Inf, or zero where the values are not.
    """
    import torch

    if not bool(torch.isfinite(scales).all()):
        fault = f"has {int((~torch.isfinite(scales)).sum()):,} scales that are NaN or Inf, expected finite ones"
        raise module.refuse(leaf, fault)
    if not bool(scales.all()) and bool(((scales == 0) & (values != 0)).any()):
        fault = f"has {int((scales == 0).sum()):,} scales that are zero for codes that are not"
        raise module.refuse(leaf, fault)
    return values.mul_(scales)


def positive_number(module: StoredModule, leaf: str) -> "Tensor":
    """One scale of a whole matrix, a float32 scalar.

    Raises:
        FileFormatError: it is not a positive, finite number.
    """
    import torch

    number = module.read(leaf).to(torch.float32).reshape(())
    if not bool(torch.isfinite(number) & (number > 0)):
        raise module.refuse(leaf, f"is {float(number)}, expected a positive, finite number")
    return number


def powers_of_two(module: StoredModule, leaf: str, stored: "Tensor") -> "Tensor":
    """Scales that are stored as bytes, exponents with a bias of 127 (E8M0), in float32.

    Raises:
        FileFormatError: a byte is 255, which stands for NaN.
    """
    import torch

    data = stored.view(torch.uint8)
    if bool((data == 255).any()):
        raise module.refuse(leaf, f"has {int((data == 255).sum()):,} scales that are NaN, expected powers of two")
    # They are the exponent bits of a float32, except for 2^-127, which is below its normal range.
    return (data.to(torch.int32) << 23).masked_fill_(data == 0, 1 << 22).view(torch.float32)
