"""diffusers' adapters: `pytorch_lora_weights.safetensors`, whose names begin with the pipeline's component.

Scales are in the header's `lora_adapter_metadata`, a JSON object of each component's PEFT fields: `unet.lora_alpha`.
Without it alpha is the rank. Sources: diffusers' `loaders/lora_base.py`, `utils/{peft_utils,state_dict_utils}.py`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from eckart.adapter.adapter import Adapter, AdapterLayer, on_meta, with_tensors
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import LayerKind, LayerOutline
from eckart.checkpoint import (
    Checkpoint,
    TensorSpec,
    atomic_directory,
    atomic_file,
    open_checkpoint,
    write_tensors,
)
from eckart.checkpoint.json_files import parse_json
from eckart.checkpoint.manifest import TEXTS
from eckart.checkpoint.output import Kind
from eckart.errors import FileFormatError, MismatchError
from eckart.formats.components import COMPONENTS, canonical, component, component_of, components
from eckart.formats.peft_config import PeftConfig, config_of
from eckart.formats.stored import factor_fault, header_texts, outline, read_alpha, read_finite, refused_kinds

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "pytorch_lora_weights.safetensors"
_METADATA = "lora_adapter_metadata"
_PARTS = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_B.bias": "bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".alpha": "alpha",
    # As diffusers wrote them before it had PEFT.
    ".lora.down.weight": "lora_A",
    ".lora.up.weight": "lora_B",
    ".lora_linear_layer.down.weight": "lora_A",
    ".lora_linear_layer.up.weight": "lora_B",
    "_lora.down.weight": "lora_A",
    "_lora.up.weight": "lora_B",
}
_NAMES = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "bias": "lora_B.bias",
    "magnitude": "lora_magnitude_vector",
}


def read(path: Path) -> Adapter:
    """The adapter in a diffusers file; its module names begin with their component.

    Raises:
        FileFormatError: metadata and tensors are damaged or disagree; every fault is listed.
    """
    stored = open_checkpoint(path)
    (file,) = {info.file for info in stored.tensors.values()}
    names, implied, faults = _parts(list(stored.tensors))
    texts = header_texts(file)
    configs, config_faults = _configs(texts.pop(_METADATA, "{}"), implied)
    faults += config_faults
    outlines = {}
    for module, parts in names.items():
        try:
            outlines[module] = _outline(stored, module, parts, configs)
        except ValueError as fault:
            faults.append(f"{module}: {fault}")
    if faults or not outlines:
        msg = f"{path}: metadata and tensors do not form an adapter in diffusers' format"
        raise FileFormatError.listing(msg, faults or ["no LoRA tensors"])

    def read_layer(module: str) -> AdapterLayer:
        tensors = {part: read_finite(stored, name) for part, name in names[module].items() if part != "alpha"}
        if "magnitude" in tensors:
            tensors["magnitude"] = tensors["magnitude"].flatten()
        return with_tensors(outlines[module], tensors)

    return Adapter(Deferred(outlines, read_layer), config={"metadata": texts}, format="diffusers", files=(file,))


def write(adapter: Adapter, path: Path, *, force: bool = False) -> None:
    """Write an adapter as a folder that diffusers loads, or as the one file when `path` ends in .safetensors.

    Raises:
        OutputError: `path` exists and `force` is not given, or cannot be written.
        MismatchError: the format cannot express the adapter; every fault is listed.
    """
    layers = adapter.outline()
    faults = refusals(adapter)
    if faults or not layers:
        msg = f"{path}: diffusers' format cannot store this adapter"
        raise MismatchError.listing(msg, faults or ["it has no layers"])
    specs = [TensorSpec.of(name, tensor) for name, tensor in _named(on_meta(layers))]
    described = json.dumps(_described(adapter), indent=2, sort_keys=True)
    texts = {"format": "pt", **TEXTS, **adapter.config.get("metadata", {}), _METADATA: described}
    if path.suffix == ".safetensors":
        with atomic_file(path, force=force, inputs=adapter.files) as file:
            write_tensors(file, specs, _named(adapter), texts)
    else:
        with atomic_directory(path, force=force, inputs=adapter.files) as folder:
            write_tensors(folder / WEIGHTS, specs, _named(adapter), texts)


def output_kind(path: Path) -> Kind:
    """A file if its name says so, or else a folder."""
    return "file" if path.suffix == ".safetensors" else "folder"


def refusals(adapter: Adapter) -> list[str]:
    """The parts of an adapter that the format cannot store, each with the reason."""
    reasons: dict[LayerKind, str] = {
        "embedding": "diffusers loads only updates of linear layers and convolutions",
        "expert": "diffusers does not load updates of single experts",
        "conv1d": "no component of a pipeline has a Conv1D",
    }
    outside = [name for name in adapter if not component(name)]
    if len(outside) == len(adapter):
        reason = "not a module of a pipeline's UNet, transformer or text encoder: its name begins with no component"
        return [f"{next(iter(outside), 'it')}: {reason}"]
    faults = [f"{name}: its name does not begin with a component of a pipeline" for name in outside]
    faults += refused_kinds(adapter.outline(), reasons)
    for part in components(adapter).values() if not faults else ():
        try:
            config_of(part.outline())
        except MismatchError as fault:
            faults.append(str(fault))
    return faults


def module_and_part(key: str) -> tuple[str, str] | None:
    """The module and the part of a tensor in the file, also by the names of old versions; None if it is not a LoRA's.

    Old names contain `.processor.` and use the UNet's names of projections in every component: `self_attn.to_q_lora` in
    a text encoder is its `q_proj`.
    """
    end = next((end for end in _PARTS if key.endswith(end)), None)
    if end is None:
        return None
    module = key.removesuffix(end).replace(".processor.", ".")
    if end.startswith("_lora"):
        owner, _, leaf = module.rpartition(".")
        if owner.endswith("self_attn"):
            leaf = leaf.replace("to_", "") + "_proj"
        module = f"{owner}.{leaf}.0" if leaf == "to_out" else f"{owner}.{leaf}"
    return module, _PARTS[end]


def _parts(keys: list[str]) -> tuple[dict[str, dict[str, str]], str | None, list[str]]:
    """The tensor of each part of each module, the component if no name has one, and faults for all other tensors."""
    parsed = {key: module_and_part(key) for key in keys}
    modules = {parts[0]: None for parts in parsed.values() if parts}
    # Files saved by a model rather than by a pipeline lack the component.
    guessed = component_of(modules) if all(component(module) is None for module in modules) else None
    names: dict[str, dict[str, str]] = {}
    faults = []
    for key, parts in parsed.items():
        module = canonical(f"{guessed}.{parts[0]}" if guessed else parts[0]) if parts else ""
        if parts is None:
            faults.append(f"{key}: not part of a LoRA in diffusers' format")
        elif component(module) is None:
            faults.append(f"{key}: begins with none of the components {', '.join(COMPONENTS)}")
        elif names.setdefault(module, {}).setdefault(parts[1], key) != key:
            faults.append(f"{key}: the same part of {module} as {names[module][parts[1]]}")
    return names, guessed, faults


def _configs(text: str, implied: str | None) -> tuple[dict[str, PeftConfig], list[str]]:
    """The metadata's config of each component; fields that name no component belong to `implied`."""
    try:
        fields = parse_json(text)
    except ValueError as error:
        return {}, [f"{_METADATA} is not valid JSON ({error})"]
    if not isinstance(fields, dict):
        return {}, [f"{_METADATA} is {type(fields).__name__}, expected an object"]
    described: dict[str, dict[str, Any]] = {}
    faults = []
    for name, value in fields.items():
        part = component(name) or implied
        if part is None:
            faults.append(f"{_METADATA}: {name} begins with none of the components {', '.join(COMPONENTS)}")
        else:
            described.setdefault(part, {})[name.removeprefix(f"{part}.")] = value
    configs = {}
    for part, values in described.items():
        try:
            configs[part] = PeftConfig.model_validate(values | {"peft_type": "LORA"})
        except ValidationError as error:
            faults += [f"{_METADATA}: {part}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    return configs, faults


def _outline(
    stored: Checkpoint, module: str, parts: Mapping[str, str], configs: Mapping[str, PeftConfig]
) -> LayerOutline:
    """One module's update, from headers; ValueError says what does not fit."""
    missing = [part for part in ("lora_A", "lora_B") if part not in parts]
    if missing:
        msg = f"{' and '.join(missing)} missing"
        raise ValueError(msg)
    tensors = {part: outline(stored, name) for part, name in parts.items() if part != "alpha"}
    A, B = tensors["lora_A"], tensors["lora_B"]
    if fault := factor_fault(A, B):
        raise ValueError(fault)
    part = module.partition(".")[0]
    name = (module_and_part(parts["lora_A"]) or (module,))[0].removeprefix(f"{part}.")
    config, rank, alpha = configs.get(part), A.shape[0], None
    if config is not None:
        alpha = config.alpha_of(name)
        declared = config.rank_of(name)
        if declared != rank:
            msg = f"rank is {declared} by {_METADATA}, lora_A is {A.shape}"
            raise ValueError(msg)
    if "alpha" in parts:
        stored_alpha = read_alpha(stored, parts["alpha"])
        if alpha is not None and alpha != stored_alpha:
            msg = f"alpha is {alpha:g} by {_METADATA} and {stored_alpha:g} by {parts['alpha']}"
            raise ValueError(msg)
        alpha = stored_alpha
    vectors = {name: tensors[name].flatten() for name in ("bias", "magnitude") if name in tensors}
    for field, vector in vectors.items():
        if vector.shape != (B.shape[0],):
            msg = f"{field} has {vector.numel()} values for {B.shape[0]} outputs"
            raise ValueError(msg)
    rslora = bool(config and config.use_rslora)
    kind = "conv" if A.ndim > 2 else "linear"
    return LayerOutline(A, B, float(rank) if alpha is None else alpha, rslora=rslora, kind=kind, **vectors)


def _named(adapter: Adapter) -> Iterator[tuple[str, "Tensor"]]:
    """Every tensor under its name in the file, one layer after another."""
    for module, layer in adapter.items():
        for part, tensor in layer.tensors().items():
            shaped = tensor
            if part == "magnitude" and layer.kind == "conv":
                shaped = tensor.reshape(1, -1, *(1 for _ in layer.lora_A.shape[2:]))
            yield f"{module}.{_NAMES[part]}", shaped


def _described(adapter: Adapter) -> dict[str, Any]:
    """The metadata: for each component the fields of the PEFT config that diffusers builds."""
    fields: dict[str, Any] = {}
    for part, layers in components(adapter).items():
        config = config_of(layers.outline())
        if part.startswith("text_encoder"):
            # Newer CLIP encoders have no text_model, and diffusers renames the tensors but not the metadata: names
            # that begin after it, unanchored, match both.
            config["target_modules"] = [name.removeprefix("text_model.") for name in config["target_modules"]]
            for pattern in ("rank_pattern", "alpha_pattern"):
                config[pattern] = {key.removeprefix(r"^text_model\."): value for key, value in config[pattern].items()}
        fields |= {f"{part}.{field}": value for field, value in config.items()}
    return fields
