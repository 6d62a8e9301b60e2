"""Where adapters belong in a base: every update and whole tensor with the tensor that it changes, from headers."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.checkpoint import Checkpoint, MatrixView, layout
from eckart.errors import MismatchError

SHOWN_NEAR = 12  # faults that name the nearest modules: as many as a message lists


@dataclass(frozen=True)
class Term:
    """What one adapter brings to one matrix, or to a vector.

    Attributes:
        adapter: its place among the adapters.
        key: a module among its layers, or a tensor that it saves whole.
        part: which of the two, or the bias of the layer.
    """

    adapter: int
    key: str
    part: Literal["update", "bias", "whole"]


@dataclass(frozen=True)
class Places:
    """Every change of a base.

    Attributes:
        changes: tensor of the model -> name of the matrix in it -> what changes it. A tensor that is no matrix has
            its own name in both places.
        views: matrices of the base by their names.
    """

    changes: dict[str, dict[str, list[Term]]]
    views: dict[str, MatrixView]


@dataclass
class _Names:
    """Names of a base, found under the names of an adapter.

    A model's files may leave out the first part of a name that its class has (`transformer.h.0…` lies as `h.0…` in
    GPT-2's), or have one that the adapter's names lack.
    """

    known: Sequence[str]
    what: str
    reasons: Mapping[str, str] = field(default_factory=dict)
    _by_tail: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.known:
            self._by_tail.setdefault(name.partition(".")[2], []).append(name)
        self._set = set(self.known)
        self._near_left = SHOWN_NEAR

    def find(self, name: str) -> str | None:
        if name in self._set:
            return name
        tail = name.partition(".")[2]
        longer = [*self._by_tail.get(name, ()), *([tail] if tail in self._set else [])]
        return longer[0] if len(longer) == 1 else None

    def missing(self, name: str) -> str:
        """Why a name was not found, or cannot be used."""
        if reason := self.reasons.get(self.find(name) or ""):
            return f"cannot be merged: {reason}"
        self._near_left -= 1
        near = difflib.get_close_matches(name, self.known, n=1) if self._near_left >= 0 else []
        return f"the base has no such {self.what}" + (f"; the nearest is {near[0]}" if near else "")


def find_places(base: Checkpoint, adapters: Sequence[Adapter]) -> Places:
    """Match every key of the adapters with a tensor of the base.

    Args:
        base: where they are to be merged.
        adapters: outlines do.

    Raises:
        MismatchError: keys that have no place, or whose shape is another; all at once, each with its reason.
    """
    found = layout(base)
    places = Places({}, {})
    for view in found.matrices:
        places.views[view.name] = view
        places.views.update(dict.fromkeys(view.tied_modules, view))
    reasons = {item.name.removesuffix(".weight"): item.reason for item in found.skipped}
    modules = _Names([*places.views, *reasons], "module", reasons)
    tensors = _Names([*base.tensors, *base.tied], "tensor")
    faults = []
    for number, adapter in enumerate(adapters):
        who = f"adapter {number + 1}: " if len(adapters) > 1 else ""
        faults += [f"{who}{fault}" for fault in _place_layers(number, adapter, base, places, modules)]
        faults += [f"{who}{fault}" for fault in _place_whole(number, adapter, base, places, tensors)]
    if faults:
        msg = f"what has no place in {base.source}"
        raise MismatchError.listing(msg, faults)
    return places


def _place_layers(number: int, adapter: Adapter, base: Checkpoint, places: Places, modules: _Names) -> list[str]:
    faults, found = [], Counter[str]()
    for name, layer in adapter.items():
        module = modules.find(name)
        view = places.views.get(module or "")
        if module is None or view is None:
            faults.append(f"{name}: {modules.missing(name)}")
            continue
        found[module] += 1
        fault = "the adapter has it twice" if found[module] > 1 else _shape_fault(layer, view)
        bias = f"{view.module if module == view.name else module}.bias"
        if layer.bias is not None and not fault:
            fault = _bias_fault(layer.bias, bias, base)
        if fault:
            faults.append(f"{name}: {fault}")
            continue
        tensor = view.tensor if module == view.name else f"{module}.weight"
        places.changes.setdefault(tensor, {}).setdefault(view.name, []).append(Term(number, name, "update"))
        if layer.bias is not None:
            places.changes.setdefault(bias, {}).setdefault(bias, []).append(Term(number, name, "bias"))
    return faults


def _place_whole(number: int, adapter: Adapter, base: Checkpoint, places: Places, tensors: _Names) -> list[str]:
    faults = []
    by_tensor = {view.tensor: view.name for view in places.views.values()}
    for name, value in adapter.modules_to_save.items():
        tensor = tensors.find(name)
        if tensor is None:
            faults.append(f"{name}: {tensors.missing(name)}")
            continue
        stored = base.tied.get(tensor, tensor)
        info = base.tensors[stored]
        terms = places.changes.setdefault(tensor, {}).setdefault(by_tensor.get(stored, tensor), [])
        if tuple(value.shape) != info.shape:
            faults.append(f"{name}: saved whole as {tuple(value.shape)}, the base's is {info.shape}")
        elif not info.dtype.is_floating_point:
            faults.append(f"{name}: {info.dtype} in the base, which nothing can be added to")
        elif stored in by_tensor and places.views[by_tensor[stored]].kind == "expert":
            faults.append(f"{name}: expert tensors cannot be replaced whole")
        else:
            terms.append(Term(number, name, "whole"))
    return faults


def _shape_fault(layer: AdapterLayer, view: MatrixView) -> str | None:
    """What keeps an update from a matrix, seen from shapes alone."""
    left, right = stored_factors(layer, view)
    rows, columns = view.stored_shape
    wanted = tuple(view.tensor_shape[1:]) if view.kind == layer.kind == "conv" else None
    if wanted and tuple(layer.lora_A.shape[1:]) != wanted:
        return f"its lora_A is for kernels {tuple(layer.lora_A.shape[1:])}, the base's are {wanted}"
    if (left.shape[0], right.shape[1]) != (rows, columns):
        return f"its update has the shape {(left.shape[0], right.shape[1])}, the base's matrix {(rows, columns)}"
    if layer.magnitude is not None and layer.magnitude.numel() != (
        columns if outputs_are_columns(layer, view) else rows
    ):
        return f"its magnitude has {layer.magnitude.numel()} numbers for a matrix of {rows} × {columns}"
    return None


def _bias_fault(bias: Tensor, name: str, base: Checkpoint) -> str | None:
    if name not in base.tensors:
        return f"it trained a bias, and the base has no {name}: its model class has no place for it"
    if base.tensors[name].shape != tuple(bias.shape):
        return f"its bias has the shape {tuple(bias.shape)}, {name} {base.tensors[name].shape}"
    return None


def outputs_are_columns(layer: AdapterLayer, view: MatrixView) -> bool:
    """Whether an output is a column of the matrix as it is stored: of (in, out) storage, and of embeddings."""
    return view.transposed or layer.kind == "embedding"


def stored_factors(layer: AdapterLayer, view: MatrixView) -> tuple[Tensor, Tensor]:
    """Factors `(rows, rank)` and `(rank, columns)` of a layer's update, unscaled, as the base stores the matrix.

    The base's layout decides, not the adapter's kind: the same file serves a Linear and a Conv1D.
    """
    A, B = layer.lora_A.flatten(1), layer.lora_B.flatten(1)
    return (A.T, B.T) if outputs_are_columns(layer, view) else (B, A)
