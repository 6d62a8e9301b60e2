"""An adapter put on a model for as long as it is measured, and taken off again without a trace.

A weight is exchanged for weight plus update only while its own module computes. So one dense update exists at a time,
nothing is added and subtracted again with rounding, and an adapter on the embedding of a tied model leaves the output
layer alone, although the two share their weight.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from eckart.errors import MismatchError

if TYPE_CHECKING:
    from eckart.adapter import Adapter, AdapterLayer


@dataclass
class _Change:
    """What an adapter does to one module: a low-rank update of it, or tensors of it replaced whole."""

    layer: "AdapterLayer | None" = None
    whole: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def adapter_applied(model: nn.Module, adapter: "Adapter") -> Iterator[None]:
    """Let `model` compute with `adapter` inside the block.

    Args:
        model: its modules carry the adapter's names, or these names behind the prefix of the whole model
            (`transformer.` for GPT-2, whose files leave it out).
        adapter: low-rank updates, biases and tensors saved whole.

    Raises:
        MismatchError: the adapter does not fit the model; every fault is listed.
    """
    with ExitStack() as stack:
        for module, change in _resolve(model, adapter).items():
            put_on, take_off = _exchange(module, change)
            stack.callback(module.register_forward_pre_hook(put_on).remove)
            stack.callback(module.register_forward_hook(take_off, always_call=True).remove)
        yield


def _exchange(module: nn.Module, change: _Change) -> tuple[Callable[..., None], Callable[..., None]]:
    """The hooks that exchange the tensors of one module before it computes, and bring the originals back after."""
    originals: dict[str, Tensor | None] = {}

    def put_on(*_: object) -> None:
        for leaf, value in _changed(module, change).items():
            originals[leaf] = getattr(module, leaf)
            _set(module, leaf, value)

    def take_off(*_: object) -> None:
        for leaf, original in originals.items():
            _set(module, leaf, original)
        originals.clear()

    return put_on, take_off


def _changed(module: nn.Module, change: _Change) -> dict[str, Tensor]:
    """The tensors of a module as the adapter wants them, by their name in the module."""
    values = {leaf: value.to(getattr(module, leaf)) for leaf, value in change.whole.items()}
    if change.layer is None:
        return values
    weight: Tensor = values.get("weight", module.weight).detach()  # type: ignore[union-attr]
    values["weight"] = weight + change.layer.delta().to(weight)
    if change.layer.bias is not None:
        update = (change.layer.bias * change.layer.scaling).to(weight)
        own = values.get("bias", module.bias)
        values["bias"] = update if own is None else own.detach() + update  # type: ignore[union-attr]
    return values


def _set(module: nn.Module, leaf: str, value: Tensor | None) -> None:
    """Past nn.Module's own setter, which would not take a plain tensor for a parameter."""
    registry = module._parameters if leaf in module._parameters else module._buffers
    registry[leaf] = value  # type: ignore[assignment]


def _resolve(model: nn.Module, adapter: "Adapter") -> dict[nn.Module, _Change]:
    """What happens to each module; MismatchError lists all that does not fit."""
    modules = dict(model.named_modules())
    prefix = getattr(model, "base_model_prefix", "")
    changes: dict[nn.Module, _Change] = {}
    faults: list[str] = []
    for name, layer in adapter.items():
        module = modules.get(name) or modules.get(f"{prefix}.{name}")
        fault = _missing(name, modules) if module is None else _layer_fault(module, layer)
        if module is None or fault:
            faults.append(f"{name}: {fault}")
        else:
            changes.setdefault(module, _Change()).layer = layer
    for name, value in adapter.modules_to_save.items():
        path, _, leaf = name.rpartition(".")
        module = modules.get(path) or modules.get(f"{prefix}.{path}")
        fault = _missing(path, modules) if module is None else _whole_fault(module, leaf, value)
        if module is None or fault:
            faults.append(f"{name}: {fault}")
        else:
            changes.setdefault(module, _Change()).whole[leaf] = value
    if faults:
        msg = "the adapter does not fit the model:"
        raise MismatchError.listing(msg, faults)
    return changes


def _missing(path: str, modules: Mapping[str, nn.Module]) -> str:
    nearest = difflib.get_close_matches(path, modules, n=1)
    return "the model has no such module" + (f"; the nearest is {nearest[0]}" if nearest else "")


def _layer_fault(module: nn.Module, layer: "AdapterLayer") -> str | None:
    """What keeps an update from a module, seen from the shapes of its factors."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        return f"a {type(module).__name__} has no weight matrix to update"
    if layer.magnitude is not None:
        return "DoRA renormalises the weight, which only a merged model measures: eckart merge"
    rows, columns = layer.low_rank().shape
    wanted = (columns, rows) if layer.kind == "conv1d" else (rows, columns)
    if tuple(weight.flatten(1).shape) != wanted:
        return f"its update has the shape {wanted}, the model's weight {tuple(weight.shape)}"
    return None


def _whole_fault(module: nn.Module, leaf: str, value: Tensor) -> str | None:
    own = getattr(module, leaf, None)
    if not isinstance(own, Tensor):
        return f"a {type(module).__name__} has no such tensor"
    if own.shape != value.shape:
        return f"its shape is {tuple(value.shape)}, the model's {tuple(own.shape)}"
    return None
