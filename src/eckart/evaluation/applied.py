"""An adapter put on a model for as long as it is measured, and taken off again without a trace.

A weight is exchanged for weight plus update only while its own module computes. So one dense update exists
at a time, nothing is added and subtracted again with rounding, and an adapter on the embedding of a tied model
leaves the output layer alone, although the two share their weight.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from eckart.errors import MismatchError

if TYPE_CHECKING:
    from eckart.adapter import Adapter

_SLICE = re.compile(r"(?P<tensor>.+)\[(?P<index>\d+)\]")


class _HasDelta(Protocol):
    def delta(self) -> Tensor:
        """The dense update in the orientation of the weight it belongs to."""
        ...


@dataclass(frozen=True)
class _Change:
    """How a parameter or buffer of a module differs while that module computes."""

    name: str
    module: nn.Module
    leaf: str
    index: int | None  # of the expert, where the tensor stacks several matrices
    layer: _HasDelta | None  # a low-rank update, or
    value: Tensor | None  # a whole new tensor


@contextmanager
def adapter_applied(model: nn.Module, adapter: "Adapter") -> Iterator[None]:
    """Let `model` compute with `adapter` inside the block.

    Args:
        model: its modules carry the adapter's names, or these names behind the prefix of the whole model
            (`transformer.` for GPT-2, whose files leave it out).
        adapter: its layers add `delta()`, float32 in the orientation of the module's own weight; its
            `modules_to_save` replace tensors whole.

    Raises:
        MismatchError: the adapter names modules that the model lacks, or an update has another shape.
    """
    changes = _resolve(model, adapter)
    by_module: dict[nn.Module, list[_Change]] = {}
    for change in changes:
        by_module.setdefault(change.module, []).append(change)
    with ExitStack() as stack:
        for module, its_changes in by_module.items():
            put_on, take_off = _exchange(module, its_changes)
            stack.callback(module.register_forward_pre_hook(put_on).remove)
            stack.callback(module.register_forward_hook(take_off, always_call=True).remove)
        yield


def _exchange(module: nn.Module, changes: list[_Change]) -> tuple[Callable[..., None], Callable[..., None]]:
    """The two hooks that exchange the changed tensors of one module and bring the originals back."""
    originals: dict[str, Tensor] = {}

    def put_on(*_: object) -> None:
        for change in changes:
            current = getattr(module, change.leaf)
            if change.leaf not in originals:
                originals[change.leaf] = current
                current = current.detach().clone()
                _set(module, change.leaf, current)
            _write(current, change)

    def take_off(*_: object) -> None:
        for leaf, original in originals.items():
            _set(module, leaf, original)
        originals.clear()

    return put_on, take_off


def _write(current: Tensor, change: _Change) -> None:
    if change.value is not None:
        current.copy_(change.value)
    if change.layer is not None:
        weight = current if change.index is None else current[change.index]
        update = change.layer.delta().to(weight.device, weight.dtype)
        # A convolution's update may come flattened to (out, in·k·k); another shape is another orientation.
        if update.shape not in (weight.shape, weight.flatten(1).shape):
            msg = f"{change.name}: its update is {tuple(update.shape)}, the weight {tuple(weight.shape)}"
            raise MismatchError(msg)
        weight += update.view_as(weight)


def _set(module: nn.Module, leaf: str, value: Tensor) -> None:
    """Past nn.Module's own setter, which would not take a plain tensor for a parameter."""
    registry = module._parameters if leaf in module._parameters else module._buffers
    registry[leaf] = value  # type: ignore[assignment]


def _resolve(model: nn.Module, adapter: "Adapter") -> list[_Change]:
    """Find every tensor that the adapter changes; MismatchError lists all that fail."""
    changes: list[_Change] = []
    faults: list[str] = []
    entries: list[tuple[str, _HasDelta | None, Tensor | None]] = [
        *((name, layer, None) for name, layer in adapter.items()),
        *((name, None, value) for name, value in adapter.modules_to_save.items()),
    ]
    modules = dict(model.named_modules())
    prefix = getattr(model, "base_model_prefix", "")
    for name, layer, value in entries:
        sliced = _SLICE.fullmatch(name)
        path, index = (sliced["tensor"], int(sliced["index"])) if sliced else (name, None)
        found = _find(modules, path) or _find(modules, f"{prefix}.{path}")
        if found is None:
            nearest = difflib.get_close_matches(path, modules, n=1)
            faults.append(
                f"{name}: the model has no such module" + (f"; the nearest is {nearest[0]}" if nearest else "")
            )
            continue
        change = _Change(name, *found, index, layer, value)
        if fault := _shape_fault(change):
            faults.append(f"{name}: {fault}")
        changes.append(change)
    if faults:
        msg = "the adapter does not fit the model:"
        raise MismatchError.of(msg, faults)
    return changes


def _find(modules: Mapping[str, nn.Module], path: str) -> tuple[nn.Module, str] | None:
    """The module and its tensor, from the name of a module with a weight or of the tensor itself."""
    if path in modules and isinstance(getattr(modules[path], "weight", None), Tensor):
        return modules[path], "weight"
    parent, _, leaf = path.rpartition(".")
    owner = modules.get(parent)
    if owner is not None and (leaf in owner._parameters or leaf in owner._buffers):
        return owner, leaf
    return None


def _shape_fault(change: _Change) -> str | None:
    """The disagreement that can be seen without forming an update."""
    current = getattr(change.module, change.leaf)
    if change.value is not None and change.value.shape != current.shape:
        return f"its shape is {tuple(change.value.shape)}, the model's {tuple(current.shape)}"
    if change.index is not None and change.index >= len(current):
        return f"the model has {len(current)} experts there"
    return None
