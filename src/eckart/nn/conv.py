"""Convolutions with adapters: one with rank channels, then one of a single pixel."""

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from eckart.adapter.outline import LayerKind
from eckart.nn.adapted import AdaptedModule, compute_dtype
from eckart.nn.factors import LoRAFactors

_CONVOLUTIONS = {nn.Conv1d: nn.functional.conv1d, nn.Conv2d: nn.functional.conv2d, nn.Conv3d: nn.functional.conv3d}


class LoRAConv(AdaptedModule):
    """A `(rank, in, k, …)` and B `(out, rank, 1, …)`."""

    kinds = ("conv",)

    @classmethod
    def kind_of(cls, module: nn.Module) -> LayerKind | None:
        """`conv`, of one to three dimensions."""
        return "conv" if isinstance(module, tuple(_CONVOLUTIONS)) else None

    @classmethod
    def fault_of(cls, module: nn.Module) -> str | None:
        """Grouped convolutions consist of several small matrices; only zero padding is supported."""
        if getattr(module, "groups", 1) != 1:
            return "a convolution in groups cannot be adapted"
        mode = getattr(module, "padding_mode", "zeros")
        return None if mode == "zeros" else f"a convolution that pads with {mode!r}"

    def as_rows(self, weight: Tensor) -> Tensor:
        """The weight as `(out, in·k·…)`."""
        return weight.flatten(1)

    def plain(self, x: Tensor) -> Tensor:
        """The convolution with W, without its bias."""
        if type(self.base_layer) in _CONVOLUTIONS and not self.must_be_called():
            return self._convolve(x, self.weight)
        return super().plain(x)

    def update(self, x: Tensor, factors: LoRAFactors) -> Tensor:
        """Scaling · conv(conv(drop(x), A), B)."""
        dtype = compute_dtype(x)
        x = x.to(dtype)
        A, B = (factor.to(dtype) for factor in factors.stacked())
        scaling, dropout = factors.scaling, self.dropout_of(x, factors)
        if dropout is not None:
            x, scaling = dropout(x), scaling / dropout.keep
        return self._function(self._convolve(x, A) * scaling, B)

    def along_outputs(self, values: Tensor) -> Tensor:
        """Values by channel."""
        return values.view(-1, *(1 for _ in self.weight.shape[2:]))

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        base = cast("nn.Conv2d", self.base_layer)
        return self._function(x, weight, None, base.stride, base.padding, base.dilation)

    @property
    def _function(self) -> Callable[..., Tensor]:
        return next(function for kind, function in _CONVOLUTIONS.items() if isinstance(self.base_layer, kind))
