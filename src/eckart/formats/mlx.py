"""mlx-lm's adapters: `adapters.safetensors`, and `adapter_config.json` with one rank and scale for all modules.

A module has `lora_a (in, rank)` and `lora_b (rank, out)`, or one more dimension for all experts of a mixture, and with
DoRA the magnitude `m`. Names are those of mlx-lm's models (`formats.mlx_names`). Source: mlx-lm's `tuner` folder.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.adapter.adapter import Adapter, AdapterLayer, with_tensors
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import AdapterOutline, LayerKind, LayerOutline, TensorOutline
from eckart.checkpoint import Checkpoint, TensorSpec, atomic_directory, open_checkpoint, write_tensors
from eckart.checkpoint.dtypes import promote
from eckart.checkpoint.json_files import field_faults, read_json_object
from eckart.checkpoint.links import refuse_links
from eckart.checkpoint.naming import is_embedding
from eckart.checkpoint.output import Kind
from eckart.errors import FileFormatError, MismatchError, NotFiniteError, SourceError
from eckart.formats.peft_config import hub_name_or_absolute_path
from eckart.formats.peft_experts import MAX_EXPERTS, expert_of
from eckart.formats.stored import beyond_updates, folder_kind, outline, read_finite, refused_kinds
from eckart.formats.table import CONFIG, MLX_WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = {"lora_a": "lora_A", "lora_b": "lora_B", "m": "magnitude"}
_ALL_LAYERS = -1  # of `num_layers`, which otherwise counts from the last layer
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "fine_tune_type": (lambda value: isinstance(value, str), "a text"),
    "model": (lambda value: isinstance(value, str), "a text"),
    "lora_parameters": (lambda value: isinstance(value, dict), "an object"),
}
_PARAMETERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rank": (lambda value: type(value) is int and 0 < value < 2**31, "a number from 1"),
    "scale": (lambda value: type(value) in (int, float) and abs(value) < 1e30, "a finite number"),
    "keys": (
        lambda value: isinstance(value, list) and all(isinstance(key, str) for key in value),
        "a list of module names",
    ),
}


def read(path: Path) -> Adapter:
    """The adapter in a folder of mlx-lm, or in one of the weight files in it, under mlx-lm's module names.

    Raises:
        SourceError: `path` does not contain an adapter of mlx-lm.
        FileFormatError: config and tensors are damaged or disagree; every fault is listed.
    """
    file = path / MLX_WEIGHTS if path.is_dir() else path
    folder = file.parent
    if not (folder / CONFIG).is_file() or not file.is_file():
        msg = f"{path}: not an adapter of mlx-lm, which is a folder with {CONFIG} (it has the scale) and {MLX_WEIGHTS}"
        raise SourceError(msg)
    refuse_links([folder / CONFIG, file], folder)
    config, stored = _read_config(folder / CONFIG), open_checkpoint(file)
    modules, faults = _parts(list(stored.tensors))
    outlines: dict[str, LayerOutline] = {}
    experts: dict[str, tuple[str, int]] = {}
    for module, names in modules.items():
        try:
            layer, count = _outline(module, {part: outline(stored, name) for part, name in names.items()}, config)
        except ValueError as fault:
            faults.append(f"{module}: {fault}")
            continue
        layers = [f"{module}[{expert}]" for expert in range(count)] if count else [module]
        outlines |= dict.fromkeys(layers, layer)
        experts |= {name: (module, index) for index, name in enumerate(layers) if count}
    if faults or not outlines:
        msg = f"{path}: config and tensors do not form an adapter of mlx-lm"
        raise FileFormatError.listing(msg, faults or ["no LoRA tensors"])

    # All experts of a module are in one tensor, and are looked up one after another.
    read_stack = lru_cache(maxsize=2)(lambda module: _read(stored, modules[module]))

    def read_layer(name: str) -> AdapterLayer:
        if name not in experts:
            tensors = _read(stored, modules[name])
            factors = {part: tensors[part].T.contiguous() for part in ("lora_A", "lora_B")}
            return with_tensors(outlines[name], tensors | factors)
        module, index = experts[name]
        tensors = read_stack(module)
        A, B = tensors["lora_A"], tensors["lora_B"][index]
        A = A.reshape(-1, B.shape[1], A.shape[-1])[index]
        return with_tensors(outlines[name], {"lora_A": A.contiguous(), "lora_B": B.contiguous()})

    base = config.get("model")
    return Adapter(Deferred(outlines, read_layer), base_model=base, format="mlx", files=(folder / CONFIG, file))


def write(adapter: Adapter, path: Path, *, force: bool = False) -> None:
    """Write an adapter under mlx-lm's names as a folder that `mlx_lm.load` reads, completely or not at all.

    All modules get the highest rank, filled with zeros, and the most common scale; the rest of another one is in its
    `lora_b`.

    Raises:
        OutputError: `path` exists and `force` is not given, or cannot be written.
        MismatchError: the format cannot express the adapter; every fault is listed.
        NotFiniteError: a scale takes a `lora_b` out of the range of its data type.
    """
    output_kind(path)
    faults = refusals(adapter)
    if faults or not len(adapter):
        msg = f"{path}: mlx-lm's format cannot store this adapter"
        raise MismatchError.listing(msg, faults or ["it has no layers"])
    layers = adapter.outline()
    scale = _common_scale(layers)
    config = _config(layers, scale)
    stacks = _stacks(layers)
    specs = [spec for module, names in stacks.items() for spec in _specs(module, names, layers)]
    with atomic_directory(path, force=force, inputs=adapter.files) as folder:
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_tensors(folder / MLX_WEIGHTS, specs, _named(adapter, stacks, scale), {"format": "mlx"})


def output_kind(path: Path) -> Kind:
    """An adapter is a folder; OutputError for the name of a file."""
    return folder_kind(path, "an MLX adapter")


def refusals(adapter: Adapter) -> list[str]:
    """The parts of an adapter that the format cannot store, each with the reason."""
    reasons: dict[LayerKind, str] = {"conv": "a convolution, and mlx-lm has no LoRA of one"}
    layers = adapter.outline()
    faults = [*refused_kinds(layers, reasons), *beyond_updates(layers)]
    faults += [f"{name}: it has a trained bias (lora_bias)" for name, layer in layers.items() if layer.bias is not None]
    without = [name for name, layer in layers.items() if layer.magnitude is None]
    if without and len(without) < len(layers):
        faults += [f"{name}: it has no DoRA magnitude, and other layers have one" for name in without]
    for name, layer in layers.items():
        if layer.magnitude is not None and layer.kind == "embedding":
            faults.append(f"{name}: DoRA of an embedding, which mlx-lm normalizes by token instead of by output")
        elif layer.magnitude is not None and layer.kind == "expert":
            faults.append(f"{name}: DoRA of an expert, which mlx-lm does not support")
    return faults


def _read_config(file: Path) -> dict[str, Any]:
    """The fields that say what the tensors mean, with `lora_parameters` checked."""
    config = read_json_object(file)
    faults = field_faults(config, _FIELDS)
    kind = config.get("fine_tune_type") or "lora"
    if kind == "full":
        msg = (
            f"{file}: fine_tune_type is full: the file contains weights of the model, not an adapter; save the model "
            "with mlx_lm.fuse, and eckart extract makes an adapter from it and its base"
        )
        raise FileFormatError(msg)
    if not faults and kind not in ("lora", "dora"):
        faults = [f"fine_tune_type: expected lora, dora or full, got {str(kind)[:60]!r}"]
    parameters = config.get("lora_parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    faults += [f"lora_parameters.{fault}" for fault in field_faults(parameters, _PARAMETERS)]
    faults += [f"lora_parameters.{name}: missing" for name in ("rank", "scale") if parameters.get(name) is None]
    if faults:
        msg = f"{file}: not a config of mlx-lm's adapters"
        raise FileFormatError.listing(msg, faults)
    return {**config, "fine_tune_type": kind}


def _parts(names: Sequence[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The tensor of each part of each module, and faults for tensors that mlx-lm would not find a place for."""
    modules: dict[str, dict[str, str]] = {}
    faults = []
    for name in names:
        module, _, part = name.rpartition(".")
        if part in _PARTS and module:
            modules.setdefault(module, {})[_PARTS[part]] = name
        else:
            faults.append(f"{name}: not part of a LoRA of mlx-lm ({', '.join(_PARTS)})")
    return modules, faults


def _outline(
    module: str, tensors: Mapping[str, TensorOutline], config: Mapping[str, Any]
) -> tuple[LayerOutline, int | None]:
    """One module's update, or that of each expert with their number; ValueError says what does not fit."""
    missing = [part for part in ("lora_a", "lora_b") if _PARTS[part] not in tensors]
    if missing:
        msg = f"{' and '.join(missing)} missing"
        raise ValueError(msg)
    A, B, magnitude = tensors["lora_A"], tensors["lora_B"], tensors.get("magnitude")
    parameters = config["lora_parameters"]
    rank, keys = parameters["rank"], parameters.get("keys")
    if keys is not None and not _is_named(module, keys):
        msg = f"no key of {CONFIG} names it, so mlx-lm finds no place for its tensors"
        raise ValueError(msg)
    is_dora = config["fine_tune_type"] == "dora"
    if is_dora != (magnitude is not None):
        msg = f"fine_tune_type is {config['fine_tune_type']} by {CONFIG}, and there is {'no' if is_dora else 'an'} m"
        raise ValueError(msg)
    alpha = float(parameters["scale"] * rank)
    if B.ndim == 3:
        count = B.shape[0]
        # An older version stored the factors of all experts below each other.
        A = TensorOutline((count, len(A) // max(count, 1), A.shape[-1]), A.dtype) if A.ndim == 2 else A
        if A.shape[:2] != (count, rank) or B.shape[2] != rank or 0 in A.shape or 0 in B.shape:
            msg = f"rank is {rank} by {CONFIG}, lora_a is {tensors['lora_A'].shape} and lora_b {B.shape}"
            raise ValueError(msg)
        if count > MAX_EXPERTS or magnitude is not None:
            msg = f"only stacks of up to {MAX_EXPERTS} experts without DoRA are supported, this one has {count}"
            raise ValueError(msg)
        lora_A, lora_B = TensorOutline(A.shape[1:], A.dtype), TensorOutline(B.shape[1:], B.dtype)
        return LayerOutline(lora_A, lora_B, alpha, kind="expert"), count
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != rank or len(B) != rank or 0 in (*A.shape, *B.shape):
        msg = f"rank is {rank} by {CONFIG}, lora_a is {A.shape} and lora_b {B.shape}"
        raise ValueError(msg)
    if magnitude is not None and is_embedding(module):
        msg = "DoRA of an embedding, which mlx-lm normalizes by token; no other format has that"
        raise ValueError(msg)
    if magnitude is not None and magnitude.shape != (B.shape[1],):
        msg = f"m is {magnitude.shape} for {B.shape[1]} outputs"
        raise ValueError(msg)
    lora_A, lora_B = TensorOutline((rank, len(A)), A.dtype), TensorOutline((B.shape[1], rank), B.dtype)
    kind: LayerKind = "embedding" if is_embedding(module) else "linear"
    return LayerOutline(lora_A, lora_B, alpha, kind=kind, magnitude=magnitude), None


def _is_named(module: str, keys: Sequence[str]) -> bool:
    """Whether a key names a module: in full, or from the number of its layer on."""
    return module in keys or any(module[match.end() :] in keys for match in re.finditer(r"\.\d+\.", module))


def _read(stored: Checkpoint, names: Mapping[str, str]) -> "dict[str, Tensor]":
    return {part: read_finite(stored, name) for part, name in names.items()}


def _common_scale(layers: AdapterOutline) -> float:
    """The scale that most layers have, which need not be rounded then."""
    scales = Counter(layer.scaling for layer in layers.values() if layer.scaling)
    return scales.most_common(1)[0][0] if scales else 0.0


def _config(layers: AdapterOutline, scale: float) -> dict[str, Any]:
    """The config, with no more fields than mlx-lm needs."""
    is_dora = any(layer.magnitude is not None for layer in layers.values())
    rank = max(layer.rank for layer in layers.values())
    config = {
        "fine_tune_type": "dora" if is_dora else "lora",
        "num_layers": _ALL_LAYERS,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": _keys(layers)},
    }
    return config | ({"model": hub_name_or_absolute_path(layers.base_model)} if layers.base_model else {})


def _keys(layers: AdapterOutline) -> list[str]:
    """The modules that mlx-lm shall wrap: by their names in a layer where all layers have the same, or else in full."""
    modules = dict.fromkeys(name.partition("[")[0] for name in layers)
    in_layer: dict[str, set[str]] = {}
    outside = []
    for module in modules:
        if match := re.match(r"(.*?\.\d+)\.(.+)", module):
            in_layer.setdefault(match[1], set()).add(match[2])
        else:
            outside.append(module)
    names = list(in_layer.values())
    if all(each == names[0] for each in names):
        return sorted({*outside, *(names[0] if names else ())})
    return sorted(modules)


def _stacks(layers: AdapterOutline) -> dict[str, dict[int | None, str]]:
    """The layers of each module by the number of their expert; None for a module without experts."""
    stacks: dict[str, dict[int | None, str]] = {}
    for name in layers:
        module, expert = expert_of(name) or (name, None)
        stacks.setdefault(module, {})[expert] = name
    return stacks


def _specs(module: str, names: Mapping[int | None, str], layers: AdapterOutline) -> list[TensorSpec]:
    """The tensors of a module."""
    rank = max(layer.rank for layer in layers.values())
    parts = [layers[name] for name in names.values()]
    dtype_A, dtype_B = (promote(*(tensor.dtype for tensor in side)) for side in zip(*map(_factors, parts), strict=True))
    inputs, outputs = parts[0].lora_A.shape[1], parts[0].lora_B.shape[0]
    if None not in names:
        count = _experts(layers)
        return [
            TensorSpec(f"{module}.lora_a", (count, rank, inputs), dtype_A),
            TensorSpec(f"{module}.lora_b", (count, outputs, rank), dtype_B),
        ]
    specs = [
        TensorSpec(f"{module}.lora_a", (inputs, rank), dtype_A),
        TensorSpec(f"{module}.lora_b", (rank, outputs), dtype_B),
    ]
    magnitude = parts[0].magnitude
    return [*specs, *([TensorSpec(f"{module}.m", (outputs,), magnitude.dtype)] if magnitude is not None else [])]


def _factors(layer: LayerOutline) -> tuple[TensorOutline, TensorOutline]:
    return layer.lora_A, layer.lora_B


def _experts(layers: AdapterOutline) -> int:
    """The number of experts: an adapter may lack unchanged ones, but hardly the last one of every module."""
    return 1 + max(expert[1] for name in layers if (expert := expert_of(name)))


def _named(
    adapter: Adapter, stacks: Mapping[str, Mapping[int | None, str]], scale: float
) -> Iterator[tuple[str, "Tensor"]]:
    """Every tensor under its name in the file, one module after another."""
    import torch

    layers = adapter.outline()
    for module, names in stacks.items():
        specs = {spec.name.rpartition(".")[2]: spec for spec in _specs(module, names, layers)}
        A, B = (torch.zeros(specs[part].shape, dtype=specs[part].dtype.torch) for part in ("lora_a", "lora_b"))
        for expert, name in names.items():
            layer = adapter[name]
            lora_B = _scaled(name, layer, scale, B.dtype)
            if expert is None:
                A[:, : layer.rank], B[: layer.rank] = layer.lora_A.T, lora_B.T
            else:
                A[expert, : layer.rank], B[expert, :, : layer.rank] = layer.lora_A, lora_B
        yield specs["lora_a"].name, A
        yield specs["lora_b"].name, B
        if "m" in specs:
            yield specs["m"].name, adapter[module].tensors()["magnitude"]


def _scaled(name: str, layer: AdapterLayer, scale: float, dtype: "Any") -> "Tensor":
    """lora_B for a config of this scale, in the data type of the file."""
    if layer.scaling == scale:
        return layer.lora_B.to(dtype)
    exact = layer.lora_B.double() * (layer.scaling / scale if scale else 0.0)
    scaled = exact.to(dtype)
    if (exact.any() and not scaled.any()) or (not scaled.isfinite().all() and exact.isfinite().all()):
        msg = f"{name}: lora_B times {layer.scaling / scale:.4g} is outside the range of {dtype}"
        raise NotFiniteError(msg)
    return scaled
