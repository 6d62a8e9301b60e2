"""Updates of fused experts, as updates of the separate modules in a checkpoint's files.

A model fuses its experts when it is loaded: the files of Mixtral's, Qwen's and DeepSeek's mixtures contain one Linear
for each expert, and `gate_up_proj` stacks the gate and the up projection. Rows of lora_B split likewise, exactly.
Source: transformers' `conversion_mapping.py`.
"""

from collections.abc import Collection
from dataclasses import replace

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import LayerOutline, TensorOutline
from eckart.formats.peft_experts import expert_of

# Parent of the experts in files, for `mlp.experts` of the model, and the names of gate, up and down projection.
_FORMS = (
    ("mlp", ("gate_proj", "up_proj", "down_proj")),
    ("mlp", ("w1", "w3", "w2")),
    ("block_sparse_moe", ("w1", "w3", "w2")),
)


def with_expert_modules(adapter: Adapter, tensors: Collection[str]) -> Adapter:
    """The adapter, with each fused expert that a checkpoint lacks as the separate modules that it has instead.

    Args:
        adapter: an adapter; layers are still read when they are looked up.
        tensors: names of the checkpoint's tensors.

    Returns:
        The same adapter if the checkpoint has its parameters, or none of the modules either.
    """
    sources: dict[str, tuple[str, slice]] = {}
    outlines: dict[str, LayerOutline] = {}
    for name, layer in adapter.outline().items():
        modules = _modules(name, layer, tensors)
        outputs = layer.lora_B.shape[0] // max(len(modules), 1)
        for index, module in enumerate(modules):
            sources[module] = (name, slice(index * outputs, (index + 1) * outputs))
            lora_B = TensorOutline((outputs, layer.rank), layer.lora_B.dtype)
            outlines[module] = replace(layer, lora_B=lora_B, kind="linear")
        if not modules:
            outlines[name] = layer
    if not sources:
        return adapter

    def read(name: str) -> AdapterLayer:
        if name not in sources:
            return adapter[name]
        fused, rows = sources[name]
        layer = adapter[fused]
        return replace(layer, lora_B=layer.lora_B[rows], kind="linear")

    return replace(adapter, layers=Deferred(outlines, read))


def _modules(name: str, layer: LayerOutline, tensors: Collection[str]) -> list[str]:
    """The modules of one expert in the files, from its first output to its last; none if they store it fused."""
    expert = expert_of(name) if layer.kind == "expert" else None
    if expert is None or expert[0] in tensors:
        return []
    owner, _, leaf = expert[0].rpartition(".")
    for part, (gate, up, down) in _FORMS:
        leaves = {"gate_up_proj": [gate, up], "down_proj": [down]}.get(leaf, [])
        modules = [f"{owner.replace('.mlp.', f'.{part}.')}.{expert[1]}.{projection}" for projection in leaves]
        if modules and all(f"{module}.weight" in tensors for module in modules):
            return modules if layer.lora_B.shape[0] % len(modules) == 0 else []
    return []
