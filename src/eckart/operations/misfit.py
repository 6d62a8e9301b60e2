"""Why an adapter does not fit a base: a fault of each name, or the one cause that explains them all."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Literal

from eckart.checkpoint import Checkpoint, MatrixView
from eckart.checkpoint.naming import nearest_names
from eckart.errors import MismatchError
from eckart.operations.stored_factors import outputs_are_columns

if TYPE_CHECKING:
    from eckart.adapter import AdapterOutline, LayerOutline, TensorOutline
    from eckart.checkpoint.base_names import NamesOfBase

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


def misfit(
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


def shape_fault(layer: LayerOutline, view: MatrixView) -> str | None:
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


def bias_fault(bias: TensorOutline, name: str, base: Checkpoint) -> str | None:
    """Why the trained bias of a layer has no place in the base."""
    if name not in base.tensors:
        return f"it has a trained bias, and the base has no {name}"
    if base.tensors[name].shape != tuple(bias.shape):
        return f"its bias has the shape {tuple(bias.shape)}, {name} {base.tensors[name].shape}"
    return None
