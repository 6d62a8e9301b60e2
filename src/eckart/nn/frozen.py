"""The weights that adapters leave alone: how they lie in a module, and products with them."""

import torch
from torch import Tensor, nn

from eckart.nn.linear4bit import blocks_of, is_linear4bit


class PackedLinear(nn.Module):
    """A linear layer that keeps its frozen weight in another form than a dense tensor.

    Attributes:
        in_features: columns of the weight.
        out_features: its rows.
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
    """Whether it is transformers' Conv1D, whose weight lies as (in, out); asked without importing transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows · weightᵀ + bias, without gradient.

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
