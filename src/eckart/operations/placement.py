"""Where adapters belong in a base: each update and saved tensor with the tensor that it changes, from headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from eckart.checkpoint import Checkpoint, MatrixView, layout
from eckart.checkpoint.base_names import NamesOfBase
from eckart.checkpoint.layouts import expert_views
from eckart.formats.peft_experts import expert_of
from eckart.formats.peft_tokens import embedding_of, is_token_rows, tokens_of
from eckart.operations.misfit import Fault, bias_fault, misfit, shape_fault

if TYPE_CHECKING:
    from eckart.adapter import AdapterOutline


@dataclass(frozen=True)
class Term:
    """One adapter's contribution to a matrix or a vector.

    Attributes:
        adapter: index among the adapters.
        key: name of a module among its layers, or of a tensor that it saves completely or adds.
        part: which of them, or the bias of the layer, or rows of an embedding.
    """

    adapter: int
    key: str
    part: Literal["update", "bias", "whole", "rows", "added"]


@dataclass(frozen=True)
class Places:
    """All changes of a base.

    Attributes:
        changes: tensor of the model -> name of the matrix in it -> what changes it. A tensor that is not a matrix has
            its own name in both places.
        views: matrices of the base by their names.
    """

    changes: dict[str, dict[str, list[Term]]]
    views: dict[str, MatrixView]


def find_places(base: Checkpoint, adapters: Sequence[AdapterOutline]) -> Places:
    """Match every key of the adapters with a tensor of the base.

    Args:
        base: the model to merge into.
        adapters: outlines of the adapters.

    Raises:
        MismatchError: keys that the base lacks or has with a different shape; all at once, each with its reason.
    """
    found = layout(base)
    views = {view.name: view for view in found.matrices}
    for view in found.matrices:
        views |= dict.fromkeys(view.tied_modules, view)
    for adapter in adapters:
        views |= _stacked_views(adapter, base, views)
    places = Places({}, views)
    reasons = {item.name.removesuffix(".weight"): item.reason for item in found.skipped}
    # Of codes that are not read, the module is what an adapter names.
    codes = [item for item in found.skipped if item.reason.startswith("quantized storage")]
    reasons = {item.name.rpartition(".")[0]: item.reason for item in codes} | reasons
    modules = NamesOfBase([*places.views, *reasons], base)
    tensors = NamesOfBase([*base.tensors, *base.tied], base)
    faults = []
    for number, adapter in enumerate(adapters):
        of_layers = _place_layers(number, adapter, base, places, modules, reasons=reasons)
        of_tensors = [
            *_place_saved(number, adapter, base, places, tensors),
            *_place_added(number, adapter, base, places, tensors),
        ]
        faults.append([*of_layers, *of_tensors])
    if any(faults):
        raise misfit(faults, adapters, base, modules, tensors)
    return places


def _stacked_views(adapter: AdapterOutline, base: Checkpoint, views: Mapping[str, MatrixView]) -> dict[str, MatrixView]:
    """Matrices of 3-D tensors that only an adapter's `target_parameters` show to be those of experts."""
    stacked = {expert[0] for name in adapter if name not in views and (expert := expert_of(name))}
    return {view.name: view for view in expert_views(base, stacked & base.tensors.keys())}


def _place_layers(
    number: int,
    adapter: AdapterOutline,
    base: Checkpoint,
    places: Places,
    modules: NamesOfBase,
    *,
    reasons: Mapping[str, str],
) -> list[Fault]:
    faults: list[Fault] = []
    counts = Counter[str]()
    for name, layer in adapter.items():
        # A parameter that is one matrix, such as a router's `gate.weight`, is a module's weight here.
        module = modules.find(name.removesuffix(".weight"))
        view = places.views.get(module or "")
        if module is None or view is None:
            reason = reasons.get(module or "")
            text = f"cannot be merged: {reason}" if reason else "the base has no such module"
            faults.append((name, "other" if reason else "missing", text))
            continue
        counts[module] += 1
        bias = f"{view.module if module == view.name else module}.bias"
        if counts[module] > 1:
            faults.append((name, "other", "the adapter contains it twice"))
        elif fault := shape_fault(layer, view):
            faults.append((name, "shape", fault))
        elif layer.bias is not None and (fault := bias_fault(layer.bias, bias, base)):
            faults.append((name, "other", fault))
        else:
            tensor = view.tensor if module == view.name else f"{module}.weight"
            places.changes.setdefault(tensor, {}).setdefault(view.name, []).append(Term(number, name, "update"))
            if layer.bias is not None:
                places.changes.setdefault(bias, {}).setdefault(bias, []).append(Term(number, name, "bias"))
    return faults


def _place_saved(
    number: int, adapter: AdapterOutline, base: Checkpoint, places: Places, tensors: NamesOfBase
) -> list[Fault]:
    faults: list[Fault] = []
    by_tensor = {view.tensor: view.name for view in places.views.values()}
    for name, value in adapter.modules_to_save.items():
        if is_token_rows(name):
            faults += _place_rows(number, name, adapter, places, tensors)
            continue
        tensor = tensors.find(name)
        if tensor is None:
            faults.append((name, "missing", "the base has no such tensor"))
            continue
        stored = base.tied.get(tensor, tensor)
        info = base.tensors[stored]
        if tuple(value.shape) != info.shape:
            text = f"its saved tensor has the shape {tuple(value.shape)}, the base's {info.shape}"
            faults.append((name, "shape", text))
        elif not info.dtype.is_floating_point:
            # A counter, such as a batch norm's, is copied from the adapter when the base is extended by it.
            if value.dtype != info.dtype:
                faults.append((name, "other", f"{value.dtype}, but {info.dtype} in the base"))
        elif stored in by_tensor and places.views[by_tensor[stored]].kind == "expert":
            faults.append((name, "other", "a tensor of experts cannot be replaced by a saved one"))
        else:
            changes = places.changes.setdefault(tensor, {})
            changes.setdefault(by_tensor.get(stored, stored), []).append(Term(number, name, "whole"))
    return faults


def _place_added(
    number: int, adapter: AdapterOutline, base: Checkpoint, places: Places, tensors: NamesOfBase
) -> list[Fault]:
    """Differences that are added to tensors of the base, such as those of norms."""
    faults: list[Fault] = []
    by_tensor = {view.tensor: view.name for view in places.views.values()}
    for name, value in adapter.added.items():
        tensor = tensors.find(name)
        if tensor is None:
            faults.append((name, "missing", "the base has no such tensor"))
            continue
        stored = base.tied.get(tensor, tensor)
        if prod(value.shape) != prod(base.tensors[stored].shape):
            text = f"its difference has the shape {tuple(value.shape)}, the base's tensor {base.tensors[stored].shape}"
            faults.append((name, "shape", text))
        else:
            changes = places.changes.setdefault(tensor, {})
            changes.setdefault(by_tensor.get(stored, stored), []).append(Term(number, name, "added"))
    return faults


def _place_rows(number: int, name: str, adapter: AdapterOutline, places: Places, tensors: NamesOfBase) -> list[Fault]:
    """Rows of an embedding, which PEFT replaces in every module that shares it and has no rows of its own."""
    tensor = tensors.find(embedding_of(name))
    if tensor is None:
        return [(name, "missing", "the base has no such tensor")]
    base = tensors.base
    stored = base.tied.get(tensor, tensor)
    shape, rows = base.tensors[stored].shape, adapter.modules_to_save[name].shape
    try:
        largest = max(tokens_of(name, adapter.config, adapter.modules_to_save[name]))
    except ValueError as fault:
        return [(name, "other", str(fault))]
    if rows[1:] != shape[1:] or largest >= shape[0]:
        return [(name, "shape", f"its rows are {rows}, up to token {largest}, the base's tensor {shape}")]
    view = next(view.name for view in places.views.values() if view.tensor == stored)
    # PEFT knows which embeddings share a weight only from the config of a transformers model.
    sharing = [stored, *(absent for absent, owner in base.tied.items() if owner == stored)] if base.config else [tensor]
    others = {tensors.find(embedding_of(other)) for other in adapter.modules_to_save if is_token_rows(other)} - {tensor}
    for shared in (each for each in sharing if each not in others):  # PEFT shares the rows of the same tokens
        places.changes.setdefault(shared, {}).setdefault(view, []).append(Term(number, name, "rows"))
    return []
