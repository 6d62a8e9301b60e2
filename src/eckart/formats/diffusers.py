"""diffusers' adapters: `pytorch_lora_weights.safetensors`, whose names begin with the pipeline's component.

Scales are in the header's `lora_adapter_metadata`, a JSON object of each component's PEFT fields: `unet.lora_alpha`.
Without it alpha is the rank. Sources: diffusers' `loaders/lora_base.py`, `utils/{peft_utils,state_dict_utils}.py`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import LayerKind, LayerOutline
from eckart.checkpoint import atomic_directory, atomic_file, open_checkpoint
from eckart.checkpoint.json_files import parse_json
from eckart.checkpoint.output import Kind
from eckart.checkpoint.pipeline import COMPONENTS
from eckart.errors import MismatchError
from eckart.formats.components import canonical, component, component_of, components
from eckart.formats.lora_file import KEYS, LoraFile, as_adapter, parts_of
from eckart.formats.lora_keys import parse_key
from eckart.formats.lora_texts import texts_of
from eckart.formats.lora_writing import Spelling, refusals_of, require_storable, write_file
from eckart.formats.peft_config import PeftConfig, config_of
from eckart.formats.stored import beyond_updates, header_texts, read_alpha

WEIGHTS = "pytorch_lora_weights.safetensors"
_METADATA = "lora_adapter_metadata"
_SPELLING = Spelling(
    {
        "lora_A": ".lora_A.weight",
        "lora_B": ".lora_B.weight",
        "bias": ".lora_B.bias",
        "magnitude": ".lora_magnitude_vector",
    },
    alphas=False,
)
_REASONS: dict[LayerKind, str] = {
    "embedding": "diffusers loads only updates of linear layers and convolutions",
    "expert": "diffusers does not load updates of single experts",
    "conv1d": "no component of a pipeline has a Conv1D",
}


def read(path: Path) -> Adapter:
    """The adapter in a diffusers file; its module names begin with their component.

    Raises:
        FileFormatError: metadata and tensors are damaged or disagree; every fault is listed.
    """
    implied = _implied(path)

    def named(module: str) -> str:
        name = canonical(f"{implied}.{module}" if implied else module)
        if component(name) is None:
            msg = f"begins with none of the components {', '.join(COMPONENTS)}"
            raise ValueError(msg)
        return name

    file = parts_of(path, named)
    texts = header_texts(path)
    configs, faults = _configs(texts.pop(_METADATA, "{}"), implied)

    def alpha_of(module: str, parts: Mapping[str, str], layer: LayerOutline) -> tuple[float | None, bool]:
        return _alpha(file, module, parts, layer, configs)

    file = LoraFile(file.stored, file.keys, [*file.faults, *faults])
    return as_adapter(file, "diffusers", alpha_of=alpha_of, texts=texts)


def write(adapter: Adapter, path: Path, *, force: bool = False) -> None:
    """Write an adapter as a folder that diffusers loads, or as the one file when `path` ends in .safetensors.

    Raises:
        OutputError: `path` exists and `force` is not given, or cannot be written.
        MismatchError: the format cannot express the adapter; every fault is listed.
    """
    require_storable(adapter, refusals(adapter), path, "diffusers' format")
    described = json.dumps(_described(adapter), indent=2, sort_keys=True)
    texts = {**texts_of(adapter.outline(), kohya=False), _METADATA: described}
    if path.suffix == ".safetensors":
        with atomic_file(path, force=force, inputs=adapter.files) as file:
            write_file(adapter, file, _SPELLING, texts)
    else:
        with atomic_directory(path, force=force, inputs=adapter.files) as folder:
            write_file(adapter, folder / WEIGHTS, _SPELLING, texts)


def output_kind(path: Path) -> Kind:
    """A file if its name says so, or else a folder."""
    return "file" if path.suffix == ".safetensors" else "folder"


def refusals(adapter: Adapter) -> list[str]:
    """The parts of an adapter that the format cannot store, each with the reason."""
    outside = [name for name in adapter if not component(name)]
    if adapter and len(outside) == len(adapter):
        reason = "not a module of a pipeline's UNet, transformer or text encoder: its name begins with no component"
        return [f"{next(iter(outside))}: {reason}"]
    faults = [f"{name}: its name does not begin with a component of a pipeline" for name in outside]
    faults += refusals_of(adapter, _REASONS, readers="diffusers' loaders")
    faults += beyond_updates(adapter.outline())
    for part in components(adapter).values() if not faults else ():
        try:
            config_of(part.outline())
        except MismatchError as fault:
            faults.append(str(fault))
    return faults


def _implied(path: Path) -> str | None:
    """The component of a file that no name in it begins with: one that a model saved rather than a pipeline."""
    modules = [found.module for key in open_checkpoint(path).tensors if (found := parse_key(key))]
    return component_of(modules) if all(component(module) is None for module in modules) else None


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


def _alpha(
    file: LoraFile, module: str, parts: Mapping[str, str], layer: LayerOutline, configs: Mapping[str, PeftConfig]
) -> tuple[float | None, bool]:
    """The alpha of a module, by the metadata and next to its factors, and whether it is divided by √rank."""
    part, _, inner = module.partition(".")
    config, alpha = configs.get(part), None
    if config is not None:
        found = parse_key(parts["lora_A"]) if "lora_A" in parts else None
        name = found.module.removeprefix(f"{part}.") if found else inner
        alpha = config.alpha_of(name)
        declared = config.rank_of(name)
        if declared != layer.rank:
            msg = f"rank is {declared} by {_METADATA}, lora_A is {layer.lora_A.shape}"
            raise ValueError(msg)
    if "alpha" in parts:
        stated = read_alpha(file.stored, parts["alpha"])
        if alpha is not None and alpha != stated:
            msg = f"alpha is {alpha:g} by {_METADATA} and {stated:g} by {parts['alpha']}"
            raise ValueError(msg)
        alpha = stated
    return alpha, bool(config and config.use_rslora)


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
    keys = adapter.config.get(KEYS, {})
    if keys and len(components(adapter)) == 1 and not any(component(key) for key in keys):
        return {field.partition(".")[2]: value for field, value in fields.items()}  # a model's file, not a pipeline's
    return fields
