"""A model that computes with an adapter for as long as it is measured, and is unchanged afterwards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from torch import Tensor, nn

from eckart.adapter import Adapter, AdapterLayer
from eckart.checkpoint.tying import is_vocabulary
from eckart.errors import MismatchError
from eckart.formats.peft_tokens import embedding_of, is_token_rows, missing_token, tokens_of, with_rows
from eckart.nn.injection import adapted_modules, eject
from eckart.nn.matching import DOES_NOT_FIT, match_layers, no_such_module
from eckart.nn.state import inject_adapter


@contextmanager
def adapter_applied(model: nn.Module, adapter: Adapter) -> Iterator[None]:
    """Let a model compute with an adapter inside the block; afterwards it is what it was, bit for bit.

    Args:
        model: without adapters; its modules have the names in the adapter, or these names after the prefix of the
            whole model (`transformer.` for GPT-2, whose files leave it out).
        adapter: its low-rank updates of every kind that `inject_adapter` takes are added, its biases and other saved
            tensors replace those of the model, with another number of tokens too. Of tied modules only the named one
            changes, but rows of tokens replace those of all of them, as in PEFT.

    Raises:
        MismatchError: the adapter does not fit the model (all faults are listed), or the model has adapters.
    """
    if adapted_modules(model):
        msg = "the model has adapters already: eject removes them"
        raise MismatchError(msg)
    faults = match_layers(model, adapter)[1]
    slots, saved_faults = _match_saved(model, adapter)
    if faults + saved_faults:
        raise MismatchError.listing(DOES_NOT_FIT, faults + saved_faults)
    with ExitStack() as stack:
        for name, places in slots.items():
            value = _value(name, adapter, getattr(*places[0]))
            for module, leaf in places:
                stack.callback(_set, module, leaf, getattr(module, leaf))
                _set(module, leaf, value)
        # A module computes in another order with an adapter, so an update of zero would change the last bits.
        layers = {name: layer for name, layer in adapter.items() if not _is_zero(layer)}
        if layers:
            stack.callback(eject, model)
            inject_adapter(model, replace(adapter, layers=layers, modules_to_save={}), trainable=False)
        yield


def _is_zero(layer: AdapterLayer) -> bool:
    return layer.magnitude is None and layer.bias is None and not (layer.lora_A.any() and layer.lora_B.any())


def _match_saved(model: nn.Module, adapter: Adapter) -> tuple[dict[str, list[tuple[nn.Module, str]]], list[str]]:
    """The modules and their attribute that each saved tensor replaces, and all that do not fit."""
    modules, prefix = dict(model.named_modules()), getattr(model, "base_model_prefix", "")
    slots: dict[str, list[tuple[nn.Module, str]]] = {}
    faults: list[str] = []
    for name, value in adapter.modules_to_save.items():
        path, _, leaf = embedding_of(name).rpartition(".")
        module = modules.get(path) or modules.get(f"{prefix}.{path}")
        if module is None:
            faults.append(f"{name}: {no_such_module(path, modules)}")
            continue
        current = getattr(module, leaf, None)
        if not isinstance(current, Tensor):
            faults.append(f"{name}: a {type(module).__name__} has no such tensor")
        elif fault := _shape_fault(name, value, adapter, current):
            faults.append(f"{name}: {fault}")
        slots[name] = [(module, leaf)]
        if is_token_rows(name):
            shared = (other for other in modules.values() if getattr(other, leaf, None) is current)
            slots[name] += [(other, leaf) for other in shared if other is not module]
    owned = {places[0] for places in slots.values()}
    for places in slots.values():
        places[1:] = [place for place in places[1:] if place not in owned]
    return slots, faults


def _shape_fault(name: str, value: Tensor, adapter: Adapter, current: Tensor) -> str | None:
    """Why a saved tensor cannot replace one of the model, or rows of it."""
    if is_token_rows(name):
        try:
            missing = missing_token(tokens_of(name, adapter.config, value), len(current))
        except ValueError as fault:
            return str(fault)
        if missing is not None:
            return f"it has rows of new tokens, but none of token {missing}"
    is_resizable = is_token_rows(name) or is_vocabulary(name)
    if value.shape == current.shape or (is_resizable and value.shape[1:] == current.shape[1:]):
        return None
    return f"its shape is {tuple(value.shape)}, the model's {tuple(current.shape)}"


def _value(name: str, adapter: Adapter, current: Tensor) -> Tensor:
    """What replaces a tensor of the model."""
    saved = adapter.modules_to_save[name]
    if is_token_rows(name):
        saved = with_rows(current.detach(), saved, tokens_of(name, adapter.config, saved))
    return _like(saved, current)


def _like(value: Tensor, current: Tensor) -> Tensor:
    """The value in the dtype, on the device and of the class of the tensor that it replaces."""
    value = value.to(current)
    return nn.Parameter(value, requires_grad=False) if isinstance(current, nn.Parameter) else value


def _set(module: nn.Module, leaf: str, value: Tensor) -> None:
    registry = module._parameters if leaf in module._parameters else module._buffers
    registry[leaf] = value  # type: ignore[assignment]
