"""An adapter under the names and for the layout of a base, from headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from eckart.adapter.deferred import Deferred
from eckart.checkpoint import Checkpoint
from eckart.checkpoint.base_names import NamesOfBase
from eckart.checkpoint.replicated import with_replicated_layers
from eckart.errors import MismatchError
from eckart.formats.attention_modules import with_attention_modules
from eckart.formats.expert_modules import modules_of_expert, with_expert_modules
from eckart.formats.for_base import rename_for_base
from eckart.formats.peft_biases import without_zero_bias
from eckart.formats.peft_experts import expert_of

if TYPE_CHECKING:
    from eckart.adapter import Adapter, AdapterLayer


def fitted(adapter: Adapter, base: Checkpoint) -> Adapter:
    """An adapter under the module names of a base, and for the layout of its experts.

    Raises:
        MismatchError: names that the base does not resolve, or other shapes.
    """
    find = NamesOfBase([*base.tensors], base).find
    renamed = with_attention_modules(rename_for_base(base, adapter))
    if adapter.files and (faults := _expert_faults(renamed, base, find)):
        msg = f"the adapter does not fit {base.source}"
        raise MismatchError.listing(msg, faults)
    return without_zero_biases(with_expert_modules(renamed, find), base)


def without_zero_biases(adapter: Adapter, base: Checkpoint) -> Adapter:
    """The adapter without the zeros that PEFT's files have as biases of modules that have none in the base."""
    find = NamesOfBase([*base.tensors], base).find
    layers = adapter.outline().layers
    lacking = [name for name, layer in layers.items() if layer.bias is not None and find(f"{name}.bias") is None]
    zero = {name: replace(layers[name], bias=None) for name in lacking if without_zero_bias(adapter[name]).bias is None}
    if not zero:
        return adapter

    def read(name: str) -> AdapterLayer:
        return without_zero_bias(adapter[name]) if name in zero else adapter[name]

    return replace(adapter, layers=Deferred({**layers, **zero}, read))


def _expert_faults(adapter: Adapter, base: Checkpoint, find: Callable[[str], str | None]) -> list[str]:
    """Stacks of experts of which the base has more than the adapter, whose files contain all of a parameter."""
    outline, faults = adapter.outline(), []
    counts = Counter(expert[0] for name in outline if (expert := expert_of(name)))
    layers = {expert[0]: layer for name, layer in outline.items() if (expert := expert_of(name))}
    for parameter, layer in layers.items():
        shape, count = base.tensors[tensor].shape if (tensor := find(parameter)) else (), counts[parameter]
        if (len(shape) == 3 and shape[0] > count) or modules_of_expert(f"{parameter}[{count}]", layer, find):
            faults.append(
                f"{parameter}: at rank {layer.rank} its file has {count} experts, and the base has more; it is for "
                "another model, or its config states another rank than its tensors have"
            )
    return faults


def deepened(base: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    """The base with the layers that the adapters' `layer_replication` repeats.

    Raises:
        MismatchError: they repeat different layers, or ones that the base does not have.
    """
    ranges = repeated_layers(adapters)
    return with_replicated_layers(base, ranges) if ranges else base


def repeated_layers(adapters: Sequence[Adapter]) -> Sequence[Sequence[int]]:
    """The ranges of layers that all of these adapters repeat; MismatchError if they differ, as then names do."""
    ranges = [adapter.config.get("layer_replication") or [] for adapter in adapters]
    if any(each != ranges[0] for each in ranges):
        msg = f"the adapters repeat different layers (layer_replication): {', '.join(map(str, ranges))}"
        raise MismatchError(msg)
    return ranges[0] if ranges else []
