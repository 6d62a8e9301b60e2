"""PEFT's `lora_bias`, which all layers of a file have or none: a layer without one gets a bias of zeros."""

from dataclasses import replace

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import LayerOutline, TensorOutline


def with_biases(adapter: Adapter) -> Adapter:
    """The same updates where a linear layer or convolution has a bias if any other layer has one."""
    layers = adapter.outline().layers
    lacking = {name: layer for name, layer in layers.items() if layer.bias is None and layer.kind != "embedding"}
    lacking = {name: layer for name, layer in lacking.items() if layer.kind != "expert" and layer.magnitude is None}
    if not lacking or all(layer.bias is None for layer in layers.values()):
        return adapter
    filled = {name: replace(layer, bias=_bias_of(layer)) for name, layer in lacking.items()}

    def read(name: str) -> AdapterLayer:
        layer = adapter[name]
        return replace(layer, bias=layer.lora_B.new_zeros(len(layer.lora_B))) if name in filled else layer

    return replace(adapter, layers=Deferred({**layers, **filled}, read))


def without_zero_bias(layer: AdapterLayer) -> AdapterLayer:
    """The layer without a bias that adds nothing."""
    return replace(layer, bias=None) if layer.bias is not None and not layer.bias.any() else layer


def _bias_of(layer: LayerOutline) -> TensorOutline:
    return TensorOutline((len(layer.lora_B),), layer.lora_B.dtype)
