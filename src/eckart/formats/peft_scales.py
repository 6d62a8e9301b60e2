"""One `lora_alpha` for all layers of a PEFT file, so that readers without `alpha_pattern` and `use_rslora` agree too.

llama.cpp's converter and several servers compute every scale as lora_alpha / rank. What a layer's scale is beyond that
goes into its lora_B; layers of the most common scale are unchanged: all of them in an adapter of one rank and alpha.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import LayerOutline
from eckart.errors import NotFiniteError


def common_alpha(layers: Mapping[str, LayerOutline]) -> float:
    """The alpha that most layers have, as the numerator of alpha / rank."""
    alphas = Counter(layer.scaling * layer.rank for layer in layers.values() if layer.scaling)
    return alphas.most_common(1)[0][0] if alphas else 0.0


def with_alpha(layers: Mapping[str, LayerOutline], alpha: float) -> dict[str, LayerOutline]:
    """The outlines of layers whose scale is alpha / rank."""
    return {name: replace(layer, alpha=alpha, rslora=False) for name, layer in layers.items()}


def folded(adapter: Adapter, alpha: float) -> Adapter:
    """The same updates with the scale alpha / rank; the rest of each is in lora_B and in the bias.

    Experts stay as they are: stacking them gives them one scale.
    """
    layers = adapter.outline().layers
    plain = with_alpha({name: layer for name, layer in layers.items() if layer.kind != "expert"}, alpha)

    def read(name: str) -> AdapterLayer:
        return _folded(name, adapter[name], alpha) if name in plain else adapter[name]

    return replace(adapter, layers=Deferred({**layers, **plain}, read))


def _folded(name: str, layer: AdapterLayer, alpha: float) -> AdapterLayer:
    factor = layer.scaling * layer.rank / alpha if alpha else 1.0
    parts = {}
    for part, tensor in {"lora_B": layer.lora_B, "bias": layer.bias}.items():
        if tensor is not None and factor != 1:
            parts[part] = (tensor.double() * factor).to(tensor.dtype)
            vanished = tensor.any() and not parts[part].any()
            if vanished or (not parts[part].isfinite().all() and tensor.isfinite().all()):
                msg = f"{name}: {part} times {factor:.4g} is outside the range of {tensor.dtype}; set `keep_scales`"
                raise NotFiniteError(msg)
    return replace(layer, alpha=alpha, rslora=False, **parts)
