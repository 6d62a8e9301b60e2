"""Updates of fused experts, as updates of the separate modules in a checkpoint's files.

A model fuses its experts when it is loaded: the files of Mixtral's, Qwen's and DeepSeek's mixtures contain one Linear
for each expert, and `gate_up_proj` stacks the gate and the up projection. Rows of lora_B split likewise, exactly.
Source: transformers' `conversion_mapping.py`.
"""

import re
from collections.abc import Callable
from dataclasses import replace

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import LayerOutline, TensorOutline
from eckart.formats.peft_experts import expert_of

# Names of an expert's projections in files, for each fused parameter, from its first output to its last.
_FORMS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3"), ("fc1", "fc3")),
    "up_proj": (("up_proj",), ("w1",), ("fc1",)),
    "down_proj": (("down_proj",), ("w2",), ("fc2",)),
}
_PARENTS = ("mlp", "block_sparse_moe", "feed_forward", "mixer", "moe")  # of the experts; files and models differ in it


def with_expert_modules(adapter: Adapter, find: Callable[[str], str | None]) -> Adapter:
    """The adapter, with each fused expert that a checkpoint lacks as the separate modules that it has instead.

    Args:
        adapter: an adapter; layers are still read when they are looked up.
        find: the checkpoint's name of a tensor by that in the model; None if it has none.

    Returns:
        The same adapter if the checkpoint has its parameters, or none of the modules either.
    """
    sources: dict[str, tuple[str, slice]] = {}
    outlines: dict[str, LayerOutline] = {}
    for name, layer in adapter.outline().items():
        modules = modules_of_expert(name, layer, find)
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


def modules_of_expert(name: str, layer: LayerOutline, find: Callable[[str], str | None]) -> list[str]:
    """The modules of one expert in the files, from its first output to its last; none if they store it fused."""
    expert = expert_of(name) if layer.kind == "expert" else None
    if expert is None or find(expert[0]) is not None:
        return []
    owner, _, leaf = expert[0].rpartition(".")
    parent = re.search(rf"\.({'|'.join(_PARENTS)})\.experts$", owner)
    owners = [owner, *(f"{owner[: parent.start()]}.{other}.experts" for other in _PARENTS if parent)]
    for form in _FORMS.get(leaf, ()):
        for place in owners:
            found = [find(f"{place}.{expert[1]}.{projection}.weight") for projection in form]
            modules = [each.removesuffix(".weight") for each in found if each]
            if len(modules) == len(form):
                return modules if layer.lora_B.shape[0] % len(modules) == 0 else []
    return []
