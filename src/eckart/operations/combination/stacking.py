"""Layers that update one module, with their weights: their exact sum, and the layer of their stacked factors."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eckart.adapter.adapter import AdapterLayer
from eckart.errors import OptionError
from eckart.linalg import LowRank
from eckart.operations.rank_change import alpha_for, cast

Weighted = Sequence[tuple[float, AdapterLayer]]


def common_scale(name: str, layers: Weighted) -> float:
    """The scaling of the sum: the largest |weight·scaling|, or that of a single layer of weight 1.

    Raises:
        OptionError: it is outside the range of float64.
    """
    if len(layers) == 1 and layers[0][0] == 1:
        return layers[0][1].scaling
    scales = [weight * layer.scaling for weight, layer in layers]
    rank, rslora = sum(layer.rank for _, layer in layers), layers[0][1].rslora
    for (weight, layer), scale in zip(layers, scales, strict=True):
        in_range = sys.float_info.min <= abs(scale) and abs(alpha_for(scale, rank, rslora=rslora)) < math.inf
        if weight and layer.scaling and not in_range:
            what = f"alpha {layer.alpha:.4g} at rank {layer.rank} with weight {weight:.4g}"
            msg = f"{name}: {what} is a scale that no alpha at rank {rank} can express in float64"
            raise OptionError(msg)
    return max(map(abs, scales)) or 1.0


def exact_sum(layers: Weighted, scale: float) -> LowRank:
    """The exact sum of updates in float64, in units of `scale`."""
    first, *rest = (term(weight, layer, scale) for weight, layer in layers)
    return sum(rest, first)


def term(weight: float, layer: AdapterLayer, scale: float) -> LowRank:
    """The weighted update of one layer in float64, in units of `scale`."""
    return layer.unscaled() * _share(weight, layer, scale)


def _share(weight: float, layer: AdapterLayer, scale: float) -> float:
    return weight * layer.scaling / scale if scale else 1.0


def stacked_layer(layers: Weighted, scale: float, dtype: torch.dtype | None) -> AdapterLayer:
    """The sum as one layer of stacked factors; a single layer of weight 1 unchanged.

    The largest |weight·scaling| becomes its scaling, so that factors of equal scale are unchanged bit for bit.
    """
    first = layers[0][1]
    if len(layers) == 1 and layers[0][0] == 1:
        return cast(first, dtype)
    shares = [(_share(weight, layer, scale), layer) for weight, layer in layers]
    dtype = dtype or promoted([factor for _, layer in layers for factor in (layer.lora_A, layer.lora_B)])
    A = torch.cat([layer.lora_A.double() for _, layer in shares])
    B = torch.cat([layer.lora_B.double() * share for share, layer in shares], dim=1)
    biases = [(share, layer.bias) for share, layer in shares if layer.bias is not None]
    bias = None
    if biases:
        total = torch.stack([bias.double() * share for share, bias in biases]).sum(0)
        bias = total.to(promoted([bias for _, bias in biases]))
    layer = replace(first, lora_A=A, lora_B=B, bias=bias, alpha=alpha_for(scale, len(A), rslora=first.rslora))
    return cast(layer, dtype)


def unscaled_layer(layer: AdapterLayer) -> AdapterLayer:
    """The layer with scaling 1 and without a magnitude; its bias has the same effect as before."""
    bias = None if layer.bias is None else (layer.bias.double() * layer.scaling).to(layer.bias.dtype)
    return replace(layer, bias=bias, magnitude=None, rslora=False, alpha=float(layer.rank))


def formed(layer: AdapterLayer) -> Tensor:
    """The update of a plain layer as a matrix in float32, or in float64 if it is stored in float64."""
    product = layer.low_rank()
    dtype = torch.promote_types(layer.lora_A.dtype, torch.float32)
    return LowRank(product.lora_B.to(dtype), product.lora_A.to(dtype)).dense()


def promoted(tensors: Sequence[Tensor]) -> torch.dtype:
    """The narrowest dtype that represents every value of all tensors."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
