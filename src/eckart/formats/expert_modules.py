"""Updates of fused experts, as updates of the modules that a checkpoint's files hold instead.

A model fuses its experts when it is loaded: the files of Mixtral, Qwen's and DeepSeek's mixtures hold one Linear for
each expert, and `gate_up_proj` is the gate above the way up. Rows of lora_B part likewise, so nothing is lost.
Source: transformers' `conversion_mapping.py`.
"""

from collections.abc import Collection
from dataclasses import replace

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.deferred import Deferred
from eckart.formats.peft_experts import expert_of

# Where files keep the experts of `mlp.experts`, and what they call gate, way up and way back.
_FORMS = (
    ("mlp", ("gate_proj", "up_proj", "down_proj")),
    ("mlp", ("w1", "w3", "w2")),
    ("block_sparse_moe", ("w1", "w3", "w2")),
)


def with_expert_modules(adapter: Adapter, tensors: Collection[str]) -> Adapter:
    """The adapter with each fused expert that a checkpoint lacks as the modules that it has in its place.

    Args:
        adapter: as it was read; layers stay to be read when they are looked up.
        tensors: names of the checkpoint's tensors.

    Returns:
        The same adapter if the checkpoint has its parameters, or has none of the modules either.
    """
    outline, sources, outlines = adapter.outline(), {}, {}
    for name, layer in outline.items():
        modules = _modules(name, layer, tensors)
        half = len(layer.lora_B) // max(len(modules), 1)
        for place, module in enumerate(modules):
            sources[module] = (name, slice(place * half, (place + 1) * half))
            outlines[module] = _part(layer, sources[module][1])
        if not modules:
            outlines[name] = layer
    if not sources:
        return adapter

    def read(name: str) -> AdapterLayer:
        if name not in sources:
            return adapter[name]
        fused, rows = sources[name]
        return _part(adapter[fused], rows)

    return replace(adapter, layers=Deferred(outlines, read))


def _part(layer: AdapterLayer, rows: slice) -> AdapterLayer:
    return replace(layer, lora_B=layer.lora_B[rows], kind="linear")


def _modules(name: str, layer: AdapterLayer, tensors: Collection[str]) -> list[str]:
    """The modules of one expert in the files, from its first output to its last; none if they hold it fused."""
    place = expert_of(name) if layer.kind == "expert" else None
    if place is None or place[0] in tensors:
        return []
    owner, _, leaf = place[0].rpartition(".")
    for part, (gate, up, down) in _FORMS:
        leaves = {"gate_up_proj": [gate, up], "down_proj": [down]}.get(leaf, [])
        modules = [f"{owner.replace('.mlp.', f'.{part}.')}.{place[1]}.{own}" for own in leaves]
        if modules and all(f"{module}.weight" in tensors for module in modules):
            return modules if len(layer.lora_B) % len(modules) == 0 else []
    return []
