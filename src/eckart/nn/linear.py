"""Linear and Conv1D layers, dense or in four bits, with adapters."""

import torch
from torch import Tensor, nn

from eckart.adapter.outline import LayerKind
from eckart.nn.adapted import AdaptedModule, compute_dtype, is_autocast
from eckart.nn.factors import LoRAFactors
from eckart.nn.frozen import PackedLinear, frozen_weight, is_conv1d
from eckart.nn.function import low_rank_linear


class LoRALinear(AdaptedModule):
    """A linear layer with adapters; a single adapter uses one fused autograd function."""

    kinds = ("linear", "conv1d")

    @classmethod
    def kind_of(cls, module: nn.Module) -> LayerKind | None:
        """`linear`, or GPT-2's `conv1d`."""
        if is_conv1d(module):
            return "conv1d"
        return "linear" if isinstance(module, nn.Linear | PackedLinear) else None

    def rows(self) -> Tensor:
        """The base weight as `(out_features, in_features)`."""
        return frozen_weight(self.base_layer, self._stored_dtype())

    def as_rows(self, weight: Tensor) -> Tensor:
        """The weight as `(out_features, in_features)`."""
        return weight.T if is_conv1d(self.base_layer) else weight

    def plain(self, x: Tensor) -> Tensor:
        """x·Wᵀ."""
        if type(self.base_layer) is nn.Linear and not self.must_be_called():
            return nn.functional.linear(x, self.weight)
        return super().plain(x)

    def update(self, x: Tensor, factors: LoRAFactors) -> Tensor:
        """Scaling · drop(x)·Aᵀ·Bᵀ."""
        dtype = compute_dtype(x)
        x = x.to(dtype)
        A, B = (factor.to(dtype) for factor in factors.stacked())
        scaling, dropout = factors.scaling, self.dropout_of(x, factors)
        if dropout is not None:
            x, scaling = dropout(x), scaling / dropout.keep
        return nn.functional.linear(nn.functional.linear(x, A) * scaling, B)

    def forward(self, x: Tensor) -> Tensor:
        """The base's output and the weighted updates."""
        adapters = [] if self.merged else list(self.switched_on())
        if len(adapters) != 1 or not self._fits(x, *adapters[0]):
            return super().forward(x)
        factors, weight = adapters[0]
        dtype = compute_dtype(x)
        x = x.to(dtype)
        A, B = (factor.to(dtype) for factor in factors.stacked())
        return low_rank_linear(
            x,
            A,
            B,
            self._total_bias(factors, weight, dtype),
            base=self.base_layer,
            scaling=factors.scaling * weight,
            dropout=self.dropout_of(x, factors),
            scale=None if factors.magnitude is None else self.magnitude_scale(factors).to(dtype),
        )

    def _fits(self, x: Tensor, factors: LoRAFactors, weight: float) -> bool:
        """Whether the fused function computes the same as the base and this adapter."""
        base = self.base_layer
        plain = type(base) in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear) or is_conv1d(base)
        supported = plain or isinstance(base, PackedLinear)
        trains = any(p.requires_grad for name, p in base.named_parameters(recurse=False) if name != "bias")
        same = not plain or compute_dtype(x) == self.weight.dtype or is_autocast(x)
        alone = not trains and not self.must_be_called()
        return supported and same and alone and (weight == 1 or factors.magnitude is None)

    def _total_bias(self, factors: LoRAFactors, weight: float, dtype: torch.dtype) -> Tensor | None:
        bias = None if self.bias is None else self.bias.to(dtype)
        if factors.lora_bias is None:
            return bias
        added = (factors.lora_bias * (factors.scaling * weight)).to(dtype)
        return added if bias is None else bias + added

    def _stored_dtype(self) -> torch.dtype:
        return self.weight.dtype if self.weight.is_floating_point() else torch.float32
