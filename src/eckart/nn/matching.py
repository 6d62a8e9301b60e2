"""Which module of a live model each layer of an adapter belongs to, and everything that does not fit."""

from collections.abc import Mapping

from torch import nn

from eckart.adapter import Adapter, AdapterLayer
from eckart.checkpoint.naming import nearest_names
from eckart.nn.targets import Target, base_modules, fault_of, paths_of, sizes_of, wrapper_of

DOES_NOT_FIT = "the adapter does not fit the model"


def match_layers(model: nn.Module, adapter: Adapter) -> tuple[dict[str, Target], list[str]]:
    """The target of each layer, by the layer's name, and the faults of all layers that have none.

    A name is looked up as it is, then after the prefix of the whole model (`transformer.` for GPT-2, whose files leave
    it out).
    """
    if fault := _fault_of_kind(adapter):
        return {}, [fault]
    modules = base_modules(model)
    paths, prefix = paths_of(modules), getattr(model, "base_model_prefix", "")
    targets: dict[str, Target] = {}
    faults: list[str] = []
    names: dict[nn.Module, str] = {}
    for name, layer in adapter.items():
        path = name if name in modules else f"{prefix}.{name}"
        if path not in modules:
            faults.append(f"{name}: {no_such_module(name, modules)}")
            continue
        module = modules[path]
        wrapped = wrapper_of(module)
        if wrapped is None:
            faults.append(f"{name}: an adapter cannot be on a {type(module).__name__}")
            continue
        target = Target(paths[module], module, *wrapped, layer.rank)
        fault = _layer_fault(layer, target) or fault_of(model, path, module)
        if module in names:
            fault = f"the model has one module for this name and for {names[module]}"
        if fault:
            faults.append(f"{name}: {fault}")
        names[module] = name
        targets[name] = target
    return targets, faults


def no_such_module(path: str, modules: Mapping[str, nn.Module]) -> str:
    """The fault of a name that the model does not have."""
    nearest = nearest_names(path, modules, count=1)
    return "the model has no such module" + (f"; the nearest is {nearest[0]}" if nearest else "")


def _layer_fault(layer: AdapterLayer, target: Target) -> str | None:
    expected, given = sizes_of(target.module, target.kind), (layer.lora_B.shape[0], layer.lora_A.flatten(1).shape[1])
    if (layer.kind, given) != (target.kind, expected):
        return f"its update is for a {layer.kind} layer of shape {given}, the model has a {target.kind} of {expected}"
    return None


def _fault_of_kind(adapter: Adapter) -> str | None:
    if adapter.config.get("layer_replication"):
        return "the adapter repeats layers (layer_replication), which a live model cannot do: merge it into the base"
    count = sum(layer.kind == "expert" for layer in adapter.values())
    if not count:
        return None
    return (
        f"{count} layers update single experts of a fused tensor, which a live model cannot do: "
        "merge the adapter into the base (eckart.merge) and use the merged model"
    )
