"""Between the names of a model's modules and llama.cpp's tensors, with the rows of lora_B in the order of each.

llama.cpp ignores parts of adapters that it does not expect, or stops: of an embedding that is also the output layer,
for example. What it would not apply is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import LayerKind, LayerOutline, TensorOutline
from eckart.checkpoint import MatrixView
from eckart.checkpoint.dtypes import FLOAT32
from eckart.checkpoint.model_config import read_config
from eckart.checkpoint.naming import is_output_layer
from eckart.formats.gguf_architectures import (
    Order,
    TensorRows,
    architecture_of,
    expert_count,
    norm_shift,
    targets,
    tensor_of,
)
from eckart.formats.model_names import Model
from eckart.formats.renaming import Move, Renaming, shaped, twice
from eckart.result import Skipped

if TYPE_CHECKING:
    from torch import Tensor

_EMBEDDING, _OUTPUT = "token_embd", "output"
_UNKNOWN = (
    "llama.cpp's names and row orders follow from the model's config, which is not known: give the model as `base`"
)
_COPY = "PEFT saves the model's own weight next to an update of it: it equals that of the model"
_IGNORED = "it is in the file, but llama.cpp ignores the norms of an adapter: merge the adapter into the model instead"


def from_modules(adapter: Adapter, model: Model | None) -> Renaming:
    """From the names of the model's modules to llama.cpp's tensors."""
    config = _config(adapter, model)
    try:
        if "model_type" not in config:
            raise ValueError(_UNKNOWN)
        architecture = architecture_of(config)
    except ValueError as fault:
        return Renaming([], [str(fault)])
    moves: list[Move] = []
    faults = []
    for name, layer in adapter.outline().items():
        try:
            moves += _moves_to_tensors(name, layer, architecture, config)
        except ValueError as fault:
            faults.append(f"{name}: {fault}")
    faults += twice([(move.new, move.old[0]) for move in moves])
    faults += _tied_faults([move for move in moves if move.new in (_EMBEDDING, _OUTPUT)], model, config)
    copies = [name for name in adapter.outline().modules_to_save if name.removesuffix(".weight") in adapter]
    faults += [fault for name in copies if (fault := _copy_fault(name, adapter, model))]
    saved, norm_faults = _norms_to_tensors(adapter, architecture, without=copies)
    stacked = any(move.new.endswith("]") for move in moves)
    experts = {"experts": expert_count(config)} if stacked else {}
    if stacked and experts["experts"] is None:
        faults.append("the number of experts is not in the model's config: give the model as `base`")
    return Renaming(
        moves,
        faults + norm_faults,
        [*(Skipped(name, _COPY) for name in copies), *(Skipped(name, _IGNORED) for name in saved)],
        saved=saved,
        config={"architecture": architecture, **experts},
    )


def to_modules(adapter: Adapter, model: Model | None) -> Renaming:
    """From llama.cpp's tensors to the modules of a model, which must be given with its matrices."""
    if model is None or not model.views:
        return Renaming([], ["llama.cpp's names and row orders are those of a model: give it as `base`"])
    try:
        architecture = architecture_of(model.config)
    except ValueError as fault:
        return Renaming([], [f"{model.source}: {fault}"])
    stated = adapter.config.get("architecture", architecture)
    if stated != architecture:
        fault = f"the adapter is for llama.cpp's {stated} models, {model.source} is one of type {architecture}"
        return Renaming([], [fault])
    moves = []
    for name, view in model.views.items():
        if view.kind == "embedding" and is_output_layer(name):
            continue
        try:
            found = targets(name, view.shape[0], architecture, model.config)
        except ValueError:
            continue
        present = [target for target in found if target.name in adapter]
        if present:
            moves.append(_move_to_module(name, view, found, present, adapter))
    known = {old for move in moves for old in move.old}
    where = f"{model.source} has no module for it that llama.cpp adapts"
    faults = [f"{name}: {where}" for name in adapter if name not in known]
    saved, norm_faults = _norms_to_modules(adapter, model, architecture)
    return Renaming(moves, faults + norm_faults, saved=saved)


def _config(adapter: Adapter, model: Model | None) -> Mapping[str, Any]:
    """The config of the given model, or of the one that the adapter names."""
    if model and model.config:
        return model.config
    folder = Path(adapter.base_model).expanduser() if adapter.base_model else None
    return read_config(folder) if folder and folder.is_dir() else {}


def _moves_to_tensors(name: str, layer: LayerOutline, architecture: str, config: Mapping[str, Any]) -> list[Move]:
    """The layers of one layer in llama.cpp; ValueError says why there is none."""
    moves = []
    for target in targets(name, layer.lora_B.shape[0], architecture, config):
        is_embedding = layer.kind == "embedding"
        if is_embedding != (target.tensor == _EMBEDDING):
            msg = f"llama.cpp applies no adapter of {'an embedding' if is_embedding else 'a matrix'} to {target.tensor}"
            raise ValueError(msg)
        kind: LayerKind = "embedding" if is_embedding else "linear" if target.expert is None else "expert"
        rows = partial(_rows, order=target.order, kind=kind)
        moves.append(Move(target.name, (name,), rows, partial(_rows_outline, order=target.order, kind=kind)))
    return moves


def _move_to_module(
    name: str, view: MatrixView, found: Sequence[TensorRows], present: Sequence[TensorRows], adapter: Adapter
) -> Move:
    """A module's layer from those of its tensors; where they are several, lora_A is read, which may be shared."""
    old = tuple(target.name for target in present)
    if len(found) == 1:
        order = found[0].order
        back = partial(_restored, view=view, order=None if order is None else np.argsort(order))
        return Move(name, old, back, back)
    first, *others = (adapter[layer].lora_A for layer in old)
    shared = all(first.shape == other.shape and bool((first == other).all()) for other in others)
    options: dict[str, Any] = {"orders": [target.order for target in present], "view": view, "shared": shared}
    return Move(name, old, partial(_fused, **options), partial(_fused_outline, **options))


def _tied_faults(moves: Sequence[Move], model: Model | None, config: Mapping[str, Any]) -> list[str]:
    """Faults of an embedding or output layer of a model in which they are one, or may be."""
    if not moves:
        return []
    tied = config.get("tie_word_embeddings")
    if model and model.views:
        tied = any(view.kind == "embedding" and is_output_layer(name) for name, view in model.views.items())
    if tied is None:
        return [
            f"{move.old[0]}: whether embedding and output layer are one is not known: give `base`" for move in moves
        ]
    reason = "the model's embedding and output layer are one, for which llama.cpp has no adapters: merge it instead"
    return [f"{move.old[0]}: {reason}" for move in moves] if tied else []


def _copy_fault(name: str, adapter: Adapter, model: Model | None) -> str | None:
    """Why a weight saved next to an update of it cannot be left out: it is not known to equal that of the model."""
    if model is None or model.checkpoint is None:
        return f"{name}: saved in full, which is left out only where it equals the model's weight: give `base`"
    checkpoint, saved = model.checkpoint, adapter.modules_to_save[name]
    view = model.views.get(name.removesuffix(".weight"))
    own = checkpoint.read(view.tensor) if view and view.tensor in checkpoint.tensors else None
    if own is not None and own.shape == saved.shape and bool((own.to(saved.dtype) == saved).all()):
        return None
    return f"{name}: saved in full with other values than the model's, which llama.cpp cannot load: merge it instead"


def _norms_to_tensors(
    adapter: Adapter, architecture: str, *, without: Sequence[str]
) -> "tuple[Mapping[str, Tensor], list[str]]":
    """The norms that an adapter replaces, under llama.cpp's names, and faults; other tensors are refused before."""
    outlines, sources, faults = {}, {}, []
    for name, tensor in adapter.outline().modules_to_save.items():
        if name in without:
            continue
        try:
            new = f"{tensor_of(name.removesuffix('.weight'), architecture)}.weight"
        except ValueError as fault:
            faults.append(f"{name}: {fault}")
            continue
        outlines[new], sources[new] = TensorOutline(tensor.shape, FLOAT32), name
    shift = norm_shift(architecture)
    return Deferred(outlines, lambda new: adapter.modules_to_save[sources[new]].float() + shift), faults


def _norms_to_modules(adapter: Adapter, model: Model, architecture: str) -> "tuple[Mapping[str, Tensor], list[str]]":
    saved = adapter.outline().modules_to_save
    sources = {}
    for name in model.checkpoint.tensors if model.checkpoint and saved else ():
        try:
            sources[name] = f"{tensor_of(name.removesuffix('.weight'), architecture)}.weight"
        except ValueError:
            continue
    sources = {name: old for name, old in sources.items() if old in saved}
    missing = saved.keys() - sources.values()
    shift = norm_shift(architecture)
    outlines = {name: saved[old] for name, old in sources.items()}
    read = Deferred(outlines, lambda name: adapter.modules_to_save[sources[name]] - shift)
    return read, [f"{name}: {model.source} has no such norm" for name in sorted(missing)]


def _rows(layer: AdapterLayer, order: Order | None, kind: LayerKind) -> AdapterLayer:
    """The layer in float32 with these rows of lora_B."""
    import torch

    lora_B = layer.lora_B if order is None else layer.lora_B[torch.from_numpy(order)]
    return replace(layer, lora_A=layer.lora_A.float(), lora_B=lora_B.float(), kind=kind)


def _rows_outline(layer: LayerOutline, order: Order | None, kind: LayerKind) -> LayerOutline:
    outputs = layer.lora_B.shape[0] if order is None else len(order)
    A, B = TensorOutline(layer.lora_A.shape, FLOAT32), TensorOutline((outputs, layer.rank), FLOAT32)
    return replace(layer, lora_A=A, lora_B=B, kind=kind)


def _restored(layer: Any, view: MatrixView, order: Order | None) -> Any:
    """A layer, or its outline, of a module that one tensor stores."""
    if order is not None and isinstance(layer, AdapterLayer):
        import torch

        layer = replace(layer, lora_B=layer.lora_B[torch.from_numpy(order)])
    kind: LayerKind = layer.kind if layer.kind == "embedding" else "expert" if view.kind == "expert" else "linear"
    return shaped(replace(layer, kind=kind), view)


def _fused(*layers: AdapterLayer, orders: Sequence[Order], view: MatrixView, shared: bool) -> AdapterLayer:
    """The layer of a module from those of the tensors that store its rows; the first one's alpha or scale is kept."""
    import torch

    outline = _fused_outline(*(layer.outline() for layer in layers), orders=orders, view=view, shared=shared)
    B = torch.zeros(view.shape[0], outline.rank, dtype=outline.lora_B.dtype.torch)
    column = 0
    for layer, order in zip(layers, orders, strict=True):
        B[torch.from_numpy(order), column : column + layer.rank] = layer.lora_B * (layer.scaling / outline.scaling)
        column += 0 if shared else layer.rank
    A = layers[0].lora_A if shared else torch.cat([layer.lora_A for layer in layers])
    return AdapterLayer(A.to(outline.lora_A.dtype.torch), B, outline.alpha, kind=outline.kind)


def _fused_outline(*layers: LayerOutline, orders: Sequence[Order], view: MatrixView, shared: bool) -> LayerOutline:
    rank = layers[0].rank if shared else sum(layer.rank for layer in layers)
    A, B = TensorOutline((rank, layers[0].lora_A.shape[1]), FLOAT32), TensorOutline((view.shape[0], rank), FLOAT32)
    kind: LayerKind = "expert" if view.kind == "expert" else "linear"
    return LayerOutline(A, B, layers[0].scaling * rank, kind=kind)
