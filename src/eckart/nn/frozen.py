"""The frozen weights under adapters: their layout in a module, and products with them."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from eckart.nn import processor
from eckart.nn.linear4bit import blocks_of, is_linear4bit

P = ParamSpec("P")
T = TypeVar("T")


class PackedLinear(nn.Module):
    """A linear layer whose frozen weight is not stored as a dense tensor.

    Attributes:
        in_features: number of columns of the weight.
        out_features: number of its rows.
        bias: shape `(out_features,)`, or None.
    """

    in_features: int
    out_features: int
    bias: nn.Parameter | None

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight, shape `(out_features, in_features)`."""
        raise NotImplementedError


def frozen_weight(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight of a linear module as `(out_features, in_features)`, a view where it is stored in `dtype`."""
    if isinstance(module, PackedLinear):
        return module.dense(dtype)
    if is_linear4bit(module):
        return blocks_of(module).dequantize().to(dtype)
    weight: Tensor = module.weight.detach().to(dtype)  # type: ignore[union-attr, operator]
    return weight.T if is_conv1d(module) else weight


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, whose weight is (in, out); does not import transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype to multiply `x` in: its own, but float32 for bfloat16 on a CPU without instructions for that.

    There bfloat16 is emulated at a quarter of the speed; the temporary copies cost little in comparison.
    """
    emulated = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not processor.multiplies_bfloat16()
    return torch.float32 if emulated else x.dtype


def as_given(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator for a function that chooses its own dtypes, which the CPU's autocast would change."""

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> T:
        with torch.autocast("cpu", enabled=False):
            return function(*args, **options)

    return run


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows · weightᵀ + bias in the dtype of all three, without gradient.

    float32 on the CPU goes to oneDNN, which chooses its kernel by what the processor can do; torch's own choice, MKL,
    takes twice the time on AMD.

    Args:
        rows: shape `(tokens, in_features)`.
        weight: shape `(out_features, in_features)`, in any strides.
        bias: shape `(out_features,)`.
    """
    if rows.dtype == weight.dtype == torch.float32 and rows.device.type == "cpu" and _ONEDNN and rows.numel():
        return _ONEDNN(rows, weight, bias, "none", [], "")
    return nn.functional.linear(rows, weight, bias)


def _onednn():
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_ONEDNN = _onednn()
