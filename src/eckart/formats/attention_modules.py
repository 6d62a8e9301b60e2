"""PEFT's updates of `nn.MultiheadAttention`, as updates of its parameters.

PEFT's layer keeps the update of `in_proj_weight` under the module's own name, and that of `out_proj` in its base layer.
It merges `out_proj` twice before every forward pass, in training too, so that update counts twice. Source: PEFT's
`lora.MultiheadAttention`.
"""

from dataclasses import replace
from typing import Any, TypeVar

from eckart.adapter.adapter import Adapter
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import Layer

AnyLayer = TypeVar("AnyLayer", bound=Layer[Any])
OUT_PROJ = ".base_layer.out_proj"


def with_attention_modules(adapter: Adapter) -> Adapter:
    """The adapter with each update of an attention's `out_proj` under the module's name, as PEFT computes it."""
    outline = adapter.outline()
    if not any(name.endswith(OUT_PROJ) for name in outline):
        return adapter
    names = {name.replace(OUT_PROJ, ".out_proj"): name for name in outline}

    def doubled(new: str, layer: AnyLayer) -> AnyLayer:
        return replace(layer, alpha=2 * layer.alpha) if names[new] != new else layer

    outlines = {new: doubled(new, outline[old]) for new, old in names.items()}
    return replace(adapter, layers=Deferred(outlines, lambda new: doubled(new, adapter[names[new]])))
