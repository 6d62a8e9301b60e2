"""Where adapters belong in a base: each update and saved tensor with the tensor that it changes, from headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal

from eckart.adapter.deferred import Deferred
from eckart.checkpoint import Checkpoint, MatrixView, layout
from eckart.checkpoint.base_names import NamesOfBase
from eckart.checkpoint.layouts import expert_views
from eckart.checkpoint.naming import nearest_names
from eckart.checkpoint.replicated import with_replicated_layers
from eckart.errors import MismatchError
from eckart.formats.attention_modules import with_attention_modules
from eckart.formats.expert_modules import modules_of_expert, with_expert_modules
from eckart.formats.for_base import rename_for_base
from eckart.formats.peft_biases import without_zero_bias
from eckart.formats.peft_experts import expert_of
from eckart.formats.peft_tokens import embedding_of, is_token_rows, tokens_of

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.adapter import Adapter, AdapterLayer, AdapterOutline, LayerOutline, TensorOutline

_UNKNOWN_ORIENTATION = {
    "expert": "the experts are square, and neither their other parameters nor the base's model_type show whether they "
    "are stored (out, in) or (in, out)",
    "conv1d": "fan_in_fan_out is true in the adapter, but neither the base's shapes nor its model_type show whether "
    "this square matrix is a Conv1D's; give the base's config.json the model_type of its architecture, or, if the "
    "module is an nn.Linear, set fan_in_fan_out to false in adapter_config.json",
}

Fault = tuple[str, Literal["missing", "shape", "other"], str]
"""Why a module or tensor does not fit: its name, the kind of reason and the reason; one kind has one common cause."""

_BOTH_FIT = {("expert", "expert"), ("conv1d", "linear")}  # kinds of a layer and of a square matrix
SHOWN = 12  # faults that a message lists: for the others no nearest name is searched


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
        raise _misfit(faults, adapters, base, modules, tensors)
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
        elif fault := _shape_fault(layer, view):
            faults.append((name, "shape", fault))
        elif layer.bias is not None and (fault := _bias_fault(layer.bias, bias, base)):
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


def _misfit(
    faults: Sequence[Sequence[Fault]],
    adapters: Sequence[AdapterOutline],
    base: Checkpoint,
    modules: NamesOfBase,
    tensors: NamesOfBase,
) -> MismatchError:
    """One error for all faults of each adapter; an adapter for another model is one fault."""
    lines = []
    for number, (adapter, of_adapter) in enumerate(zip(adapters, faults, strict=True), 1):
        label = f"adapter {number}: " if len(adapters) > 1 else ""
        if cause := _common_cause(of_adapter, adapter, base):
            lines.append(f"{label}{cause}")
            continue
        for key, kind, reason in of_adapter:
            near = []
            if kind == "missing" and len(lines) < SHOWN:
                names = tensors if reason.endswith("tensor") else modules
                near = nearest_names(key, names.names, count=1)
            lines.append(f"{label}{key}: {reason}" + (f"; the nearest is {near[0]}" if near else ""))
    encodings = sorted({info.quantization for info in base.tensors.values() if info.quantization})
    msg = f"the adapter does not fit {base.source}" + (f" (quantized: {', '.join(encodings)})" if encodings else "")
    return MismatchError.listing(msg, lines)


def _common_cause(faults: Sequence[Fault], adapter: AdapterOutline, base: Checkpoint) -> str | None:
    """The common cause if no part of an adapter fits: it was made for another model."""
    kinds = {kind for _, kind, _ in faults}
    layers = [key for key, _, _ in faults if key in adapter]
    if len(layers) < 3 or len(layers) < len(adapter) or len(kinds) != 1 or kinds == {"other"}:
        return None
    made_for = f" It was made for {adapter.base_model}." if adapter.base_model else ""
    first, _, reason = faults[0]
    if kinds == {"missing"}:
        names = f"none of its {len(layers)} modules is in this model (such as {first})"
        return f"it is for another architecture: {names}.{made_for}"
    shapes = f"all of its {len(layers)} modules have a different shape in this model (such as {first}: {reason})"
    return f"it is for a model of another size: {shapes}.{made_for}"


def _shape_fault(layer: LayerOutline, view: MatrixView) -> str | None:
    """Why an update does not fit a matrix, from shapes alone."""
    A, B = tuple(layer.lora_A.shape), tuple(layer.lora_B.shape)
    rows, columns = view.stored_shape
    if view.swaps_factors is None and rows == columns and (layer.kind, view.kind) in _BOTH_FIT:
        return _UNKNOWN_ORIENTATION[layer.kind]
    kernel = tuple(view.tensor_shape[1:]) if view.kind == layer.kind == "conv" else None
    if kernel and A[1:] != kernel:
        return f"its lora_A is for kernels {A[1:]}, the base's are {kernel}"
    shape = (B[0], prod(A[1:]))
    if outputs_are_columns(layer, view):
        shape = shape[::-1]
    if shape != (rows, columns):
        return f"its update has the shape {shape}, the base's matrix {(rows, columns)}"
    outputs = columns if outputs_are_columns(layer, view) else rows
    if layer.magnitude is not None and layer.magnitude.ndim == 1 and layer.magnitude.numel() != outputs:
        return f"its magnitude has {layer.magnitude.numel()} numbers for a matrix of {rows} × {columns}"
    return None


def _bias_fault(bias: TensorOutline, name: str, base: Checkpoint) -> str | None:
    if name not in base.tensors:
        return f"it has a trained bias, and the base has no {name}"
    if base.tensors[name].shape != tuple(bias.shape):
        return f"its bias has the shape {tuple(bias.shape)}, {name} {base.tensors[name].shape}"
    return None


def outputs_are_columns(layer: AdapterLayer | LayerOutline, view: MatrixView) -> bool:
    """Whether an output is a column of the stored matrix, as with (in, out) storage and with embeddings.

    For an expert, shapes decide: PEFT's releases and models disagree about the order of its dimensions.
    """
    rows, columns = view.stored_shape
    if view.kind == "expert" and rows != columns:
        return (layer.lora_B.shape[0], layer.lora_A.shape[1]) == (columns, rows)
    return bool(view.swaps_factors) or layer.kind == "embedding"


def stored_factors(layer: AdapterLayer, view: MatrixView) -> tuple[Tensor, Tensor]:
    """Factors `(rows, rank)` and `(rank, columns)` of a layer's update, unscaled, in the base's stored orientation.

    The base's layout decides, not the adapter's kind: the same file fits a Linear and a Conv1D.
    """
    A, B = layer.lora_A.flatten(1), layer.lora_B.flatten(1)
    return (A.T, B.T) if outputs_are_columns(layer, view) else (B, A)
