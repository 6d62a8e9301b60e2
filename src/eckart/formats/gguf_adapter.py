"""llama.cpp's adapters: one GGUF file with `lora_a` and `lora_b` of each tensor, and one alpha for all of them.

A tensor's scale is alpha / rank, and 1 where alpha is 0 or missing. Factors are stored as PEFT's, those of the token
embedding with lora_a as (vocabulary, rank), those of experts stacked. Layers have the names of the tensors, without
`.weight`, and llama.cpp's order of rows (`formats.gguf_names`). Source: llama.cpp's `src/llama-adapter.cpp`.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter, AdapterLayer, with_tensors
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import LayerOutline, TensorOutline
from eckart.checkpoint import atomic_file
from eckart.checkpoint.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from eckart.checkpoint.gguf_tensors import read_tensor, storage_types, tensor_fault, tensor_info
from eckart.checkpoint.manifest import TEXTS
from eckart.checkpoint.output import Kind
from eckart.errors import FileFormatError, MismatchError, NotFiniteError
from eckart.formats.peft_experts import MAX_EXPERTS, expert_of
from eckart.formats.peft_scales import common_alpha
from eckart.formats.stored import beyond_updates, file_kind

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_FACTOR = re.compile(r"(.+)\.weight\.lora_([ab])")
_EMBEDDING = "token_embd"
_ALPHA, _BASE_NAME = "adapter.lora.alpha", "general.base_model.0.name"
_INVOCATION = "adapter.alora.invocation_tokens"
_SAME = 1e-7  # relative: less than the rounding of the float32 values that it would change


def read(path: Path) -> Adapter:
    """The adapter in a GGUF file, under the names and in the row order of llama.cpp.

    Raises:
        FileFormatError: metadata and tensors are damaged or disagree; every fault is listed.
        MissingExtraError: the `gguf` package is not installed.
    """
    storage_types()
    header = read_gguf_header(path)
    stored = {tensor.name: tensor for tensor in header.tensors}
    faults = [fault for tensor in header.tensors if (fault := tensor_fault(header, tensor))]
    faults += _metadata_faults(header)
    factors, saved, name_faults = _sorted_names(stored)
    faults += name_faults
    outlines: dict[str, LayerOutline] = {}
    experts: set[int] = set()
    alpha = header.metadata.get(_ALPHA) or 0.0
    for name, parts in () if faults else factors.items():
        try:
            a, b = (_outline(header, parts[part]) for part in "ab")
            outline, count = _layer_outline(name, a, b, alpha)
        except ValueError as fault:
            faults.append(f"{name}: {fault}")
            continue
        if count is None:
            outlines[name] = outline
        else:
            experts.add(count)
            outlines |= {f"{name}[{index}]": outline for index in range(count)}
    if len(experts) > 1:
        faults.append(f"stacks of {', '.join(map(str, sorted(experts)))} experts, expected one number for all layers")
    if faults or not outlines:
        msg = f"{path}: not an adapter in llama.cpp's format"
        raise FileFormatError.listing(msg, faults or ["no LoRA tensors"])

    # The experts of a tensor are looked up one after another.
    @lru_cache(maxsize=2)
    def read_stack(name: str) -> "tuple[Tensor, Tensor]":
        a, b = (_read_finite(header, factors[name][part]) for part in "ab")
        return a, b

    def read_layer(name: str) -> AdapterLayer:
        stack, index = expert_of(name) or (name, None)
        if index is None:
            a, b = (_read_finite(header, factors[stack][part]) for part in "ab")
        else:
            a, b = (factor[index] for factor in read_stack(stack))
        lora_A = a.T.contiguous() if outlines[name].kind == "embedding" else a
        return with_tensors(outlines[name], {"lora_A": lora_A, "lora_B": b})

    config = {"architecture": header.metadata["general.architecture"]} | ({"experts": max(experts)} if experts else {})
    base = header.metadata.get(_BASE_NAME)
    return Adapter(
        Deferred(outlines, read_layer),
        Deferred(
            {name: _outline(header, tensor) for name, tensor in saved.items()},
            lambda name: _read_finite(header, saved[name]),
        ),
        base_model=base if isinstance(base, str) else None,
        config=config,
        format="gguf",
        files=(path,),
    )


def write(adapter: Adapter, path: Path, *, force: bool = False) -> None:
    """Write an adapter under llama.cpp's names as one file in float32, completely or not at all, layer by layer.

    Raises:
        OutputError: `path` does not end in .gguf, exists and `force` is not given, or cannot be written.
        MismatchError: the format cannot express the adapter; every fault is listed.
        NotFiniteError: a factor is outside the range of float32 with one alpha for all layers.
        MissingExtraError: the `gguf` package is not installed.
    """
    output_kind(path)
    storage_types()
    import numpy as np
    from gguf.gguf_writer import GGUFWriter

    faults = refusals(adapter)
    if "architecture" not in adapter.config:
        faults.append("its names are not llama.cpp's: convert the adapter to gguf")
    alpha = float(np.float32(common_alpha(adapter.outline().layers))) or 1.0
    if not math.isfinite(alpha):
        faults.append("its alpha is outside the range of float32")
    if faults or not len(adapter):
        msg = f"{path}: llama.cpp's format cannot store this adapter"
        raise MismatchError.listing(msg, faults or ["it has no layers"])
    with atomic_file(path, force=force, inputs=adapter.files) as file:
        writer = GGUFWriter(file, adapter.config["architecture"])
        writer.add_string("general.type", "adapter")
        writer.add_string("eckart.written_by", TEXTS["written_by"])
        writer.add_string("adapter.type", "lora")
        writer.add_float32(_ALPHA, alpha)
        if adapter.base_model:
            writer.add_uint32("general.base_model.count", 1)
            writer.add_string(_BASE_NAME, adapter.base_model)
        for name, shape in _shapes(adapter):
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * math.prod(shape))
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for array in _arrays(adapter, alpha):
                writer.write_tensor_data(array)
        finally:
            writer.close()


def output_kind(path: Path) -> Kind:
    """An adapter of llama.cpp is one file; OutputError says how to name it."""
    return file_kind(path, ".gguf", "an adapter in llama.cpp's format")


def refusals(adapter: Adapter) -> list[str]:
    """The parts of an adapter that the format cannot store, each with the reason."""
    outline = adapter.outline()
    faults = beyond_updates(outline)
    for name, layer in outline.items():
        if layer.magnitude is not None:
            faults.append(
                f"{name}: DoRA, of which llama.cpp would apply only the update: merge it into the model instead"
            )
        if layer.bias is not None:
            faults.append(f"{name}: it has a trained bias (lora_bias), which llama.cpp's format cannot store")
        if layer.kind == "conv":
            faults.append(f"{name}: a convolution, to which llama.cpp applies no adapter")
    faults += [
        f"{name}: a tensor saved in full (modules_to_save), and llama.cpp loads only updates: merge it into the model"
        for name, tensor in outline.modules_to_save.items()
        if (tensor.ndim != 1 or "norm" not in name) and name.removesuffix(".weight") not in outline
    ]
    return faults


def _metadata_faults(header: GgufHeader) -> list[str]:
    data = header.metadata
    alpha = data.get(_ALPHA, 0.0)
    rules = (
        (data.get("general.type") != "adapter", f"general.type is {data.get('general.type')!r}, expected 'adapter'"),
        (data.get("adapter.type") != "lora", f"adapter.type is {data.get('adapter.type')!r}, expected 'lora'"),
        (not isinstance(data.get("general.architecture"), str), "general.architecture is missing"),
        (type(alpha) is not float or not math.isfinite(alpha), f"{_ALPHA} is {alpha!r}, expected a finite number"),
        (_INVOCATION in data, "an activated LoRA (aLoRA), which changes only what follows its invocation tokens"),
    )
    return [fault for applies, fault in rules if applies]


def _sorted_names(
    stored: Mapping[str, GgufTensor],
) -> tuple[dict[str, dict[str, GgufTensor]], dict[str, GgufTensor], list[str]]:
    """The two factors of each layer, tensors stored in full, and faults for all others."""
    factors: dict[str, dict[str, GgufTensor]] = {}
    saved, faults = {}, []
    for name, tensor in stored.items():
        if match := _FACTOR.fullmatch(name):
            factors.setdefault(match[1], {})[match[2]] = tensor
        elif name.endswith("_norm.weight") and len(tensor.shape) == 1:
            saved[name] = tensor
        else:
            faults.append(f"{name}: neither a factor of a LoRA nor the weight of a norm")
    faults += [
        f"{name}: lora_{'b' if 'a' in parts else 'a'} missing" for name, parts in factors.items() if len(parts) < 2
    ]
    return factors, saved, faults


def _layer_outline(name: str, a: TensorOutline, b: TensorOutline, alpha: float) -> tuple[LayerOutline, int | None]:
    """One update from the shapes of its tensors, and its number of experts; ValueError says what does not fit."""
    count = None
    is_embedding = name == _EMBEDDING
    if a.ndim == b.ndim == 3 and not is_embedding and a.shape[0] == b.shape[0]:
        count = a.shape[0]
        if count > MAX_EXPERTS:
            msg = f"only stacks of up to {MAX_EXPERTS} experts are supported, this one has {count}"
            raise ValueError(msg)
        a, b = (TensorOutline(factor.shape[1:], factor.dtype) for factor in (a, b))
    if is_embedding and a.ndim == 2:
        a = TensorOutline(a.shape[::-1], a.dtype)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        msg = f"the factors {a.shape} and {b.shape} are not a product of one rank"
        raise ValueError(msg)
    kind = "embedding" if is_embedding else "linear" if count is None else "expert"
    return LayerOutline(a, b, alpha or float(a.shape[0]), kind=kind), count


def _outline(header: GgufHeader, tensor: GgufTensor) -> TensorOutline:
    info = tensor_info(header, tensor, tensor.name)
    return TensorOutline(info.shape, info.dtype)


def _read_finite(header: GgufHeader, tensor: GgufTensor) -> "Tensor":
    """A tensor of the file; NotFiniteError if it contains NaN or Inf."""
    from eckart.linalg.finite import require_finite

    values = read_tensor(header, tensor)
    require_finite(values, f"{header.path}: {tensor.name}")
    return values


def _stacks(adapter: Adapter) -> dict[str, dict[int | None, str]]:
    """The layers of each tensor: several for the experts of a stack."""
    stacks: dict[str, dict[int | None, str]] = {}
    for name in adapter:
        tensor, index = expert_of(name) or (name, None)
        stacks.setdefault(tensor, {})[index] = name
    return stacks


def _shapes(adapter: Adapter) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the file, in its order."""
    outline = adapter.outline()
    for name, tensor in outline.modules_to_save.items():
        yield name, tensor.shape
    for tensor, names in _stacks(adapter).items():
        layers = [outline[name] for name in names.values()]
        rank, inputs, outputs = max(layer.rank for layer in layers), layers[0].lora_A.shape[1], len(layers[0].lora_B)
        if None not in names:
            count = _expert_count(adapter, names)
            yield f"{tensor}.weight.lora_a", (count, rank, inputs)
            yield f"{tensor}.weight.lora_b", (count, outputs, rank)
        else:
            yield f"{tensor}.weight.lora_a", (inputs, rank) if layers[0].kind == "embedding" else (rank, inputs)
            yield f"{tensor}.weight.lora_b", (outputs, rank)


def _arrays(adapter: Adapter, alpha: float) -> "Iterator[np.ndarray]":
    """The values of every tensor of the file, in its order; experts that are missing, and lower ranks, are zeros."""
    import numpy as np

    for tensor in adapter.modules_to_save.values():
        yield tensor.float().numpy()
    outline = adapter.outline()
    for names in _stacks(adapter).values():
        rank = max(outline[name].rank for name in names.values())
        layers = ((index, _scaled(name, adapter[name], rank, alpha)) for index, name in names.items())
        if None in names:
            _, layer = next(iter(layers))
            yield np.ascontiguousarray((layer.lora_A.T if layer.kind == "embedding" else layer.lora_A).numpy())
            yield np.ascontiguousarray(layer.lora_B.numpy())
            continue
        first = outline[next(iter(names.values()))]
        count = _expert_count(adapter, names)
        a = np.zeros((count, rank, first.lora_A.shape[1]), dtype=np.float32)
        b = np.zeros((count, len(first.lora_B), rank), dtype=np.float32)
        for index, layer in layers:
            a[index, : layer.rank] = layer.lora_A.numpy()
            b[index, :, : layer.rank] = layer.lora_B.numpy()
        yield a
        yield b


def _expert_count(adapter: Adapter, names: Mapping[int | None, str]) -> int:
    return max(adapter.config.get("experts", 0), *(index + 1 for index in names if index is not None))


def _scaled(name: str, layer: AdapterLayer, rank: int, alpha: float) -> AdapterLayer:
    """The layer in float32 for a reader whose scale is alpha / rank; the rest of its scale is in lora_B."""
    factor = layer.scaling * rank / alpha
    B = layer.lora_B.float() if abs(factor - 1) < _SAME else (layer.lora_B.double() * factor).float()
    vanished = factor and layer.lora_B.any() and not B.any()
    if vanished or not (B.isfinite().all() and layer.lora_A.float().isfinite().all()):
        msg = f"{name}: its factors with one alpha for all layers are outside the range of float32"
        raise NotFiniteError(msg)
    return replace(layer, lora_A=layer.lora_A.float(), lora_B=B)
