"""PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors`.

Names carry `base_model.model.` before the module. Rank and alpha hold for all modules unless `rank_pattern` or
`alpha_pattern` says otherwise: keys there are regexes, so every name is escaped and anchored when written.
Source: PEFT's `tuners/lora/config.py` and `utils/save_and_load.py`.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from eckart.adapter.adapter import Adapter, AdapterLayer, LayerKind
from eckart.checkpoint import atomic_directory, open_checkpoint
from eckart.errors import FileFormatError, MismatchError, SourceError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_LINEAR = ("lora_A.weight", "lora_B.weight")
_MAX_CONFIG_BYTES = 16 * 2**20
_PARTS = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_B.bias": "bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
_REFUSED = {
    "target_parameters": "adapters of expert tensors (target_parameters) are not read yet",
    "megatron_config": "Megatron adapters are not read",
    "layer_replication": "replicated layers (layer_replication) are not read",
}


class PeftConfig(BaseModel):
    """The fields of `adapter_config.json` that decide what the tensors mean; others are kept as they are."""

    model_config = ConfigDict(extra="allow")

    peft_type: str
    r: int = Field(default=8, ge=1)
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    base_model_name_or_path: str | None = None
    task_type: str | None = None


def read(path: Path) -> Adapter:
    """The adapter in a PEFT folder.

    Raises:
        SourceError: `path` holds no PEFT adapter.
        FileFormatError: config and tensors are damaged or disagree; every fault is listed.
    """
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        msg = f"{path}: not a PEFT adapter, which is a folder with {CONFIG} and {WEIGHTS}"
        raise SourceError(msg)
    config = _read_config(path / CONFIG)
    stored = open_checkpoint(path / WEIGHTS)
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name in stored.tensors:
        module = name.removeprefix(PREFIX)
        end = next((end for end in _PARTS if module.endswith(end)), None)
        if end is None:
            whole[module.replace(".base_layer.", ".")] = stored.read(name)
        else:
            parts.setdefault(module.removesuffix(end), {})[_PARTS[end]] = stored.read(name)
    layers, faults = {}, []
    for module, tensors in parts.items():
        try:
            layers[module] = _layer(module, tensors, config)
        except ValueError as fault:
            faults.append(f"{module}: {fault}")
    if faults or not layers:
        msg = f"{path}: config and tensors do not make an adapter"
        raise FileFormatError.of(msg, faults or ["no LoRA tensors"])
    return Adapter(layers, whole, config.base_model_name_or_path, config.task_type, dict(config.model_extra or {}))


def write(adapter: Adapter, path: Path, *, force: bool = False) -> None:
    """Write an adapter as a PEFT folder, whole or not at all.

    Raises:
        OutputError: `path` exists and `force` is not given, or cannot be written.
        MismatchError: layers that one PEFT config cannot describe.
    """
    config = config_of(adapter)
    tensors = {f"{PREFIX}{_stored_name(name, adapter)}": tensor for name, tensor in adapter.modules_to_save.items()}
    for module, layer in adapter.items():
        names = ("lora_embedding_A", "lora_embedding_B") if layer.kind == "embedding" else _LINEAR
        parts = {names[0]: layer.lora_A, names[1]: layer.lora_B}
        parts |= {"lora_B.bias": layer.bias, "lora_magnitude_vector": layer.magnitude}
        tensors |= {f"{PREFIX}{module}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
    with atomic_directory(path, force=force) as folder:
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )
        # safetensors makes files that only their owner can read; an adapter is as readable as its config.
        (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)


def config_of(adapter: Adapter) -> dict[str, Any]:
    """The `adapter_config.json` that describes an adapter, with no more fields than PEFT needs.

    Raises:
        MismatchError: layers that one PEFT config cannot describe.
    """
    layers = list(adapter.values())
    if not layers:
        msg = "an adapter without a single layer cannot be written"
        raise MismatchError(msg)
    if any(layer.magnitude is not None for layer in layers) and any(layer.magnitude is None for layer in layers):
        msg = "PEFT cannot mix DoRA layers with plain ones: " + ", ".join(
            name for name, layer in adapter.items() if layer.magnitude is None
        )
        raise MismatchError(msg)
    rslora = all(layer.rslora for layer in layers)
    ranks = {name: layer.rank for name, layer in adapter.items()}
    # Where rules differ between layers, alpha / rank is the one that every layer can be written in.
    alphas = {
        name: float(layer.alpha if rslora else layer.scaling * layer.rank if layer.rslora else layer.alpha)
        for name, layer in adapter.items()
    }
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    bias = adapter.config.get("bias", "none")
    saved = sorted({name.rpartition(".")[0] for name in adapter.modules_to_save if not _is_trained_bias(name, adapter)})
    config = {
        **adapter.config,
        "peft_type": "LORA",
        "base_model_name_or_path": adapter.base_model,
        "task_type": adapter.task_type,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": {name: _plain(value) for name, value in _pattern(alphas, alpha).items()},
        "target_modules": list(adapter),
        "lora_dropout": 0.0,
        "bias": bias,
        "fan_in_fan_out": any(layer.kind == "conv1d" for layer in layers),
    }
    optional = {
        "modules_to_save": saved or None,
        "use_rslora": rslora,
        "use_dora": layers[0].magnitude is not None,
        "lora_bias": any(layer.bias is not None for layer in layers),
    }
    return config | {name: value for name, value in optional.items() if value}


def _is_trained_bias(name: str, adapter: Adapter) -> bool:
    """Whether a whole tensor is a bias that PEFT trained in place (`bias` other than "none")."""
    return name.endswith(".bias") and adapter.config.get("bias", "none") != "none"


def _stored_name(name: str, adapter: Adapter) -> str:
    """A whole tensor's name in the file: a trained bias of an adapted module lies in its base layer."""
    module = name.removesuffix(".bias")
    inside = _is_trained_bias(name, adapter) and module in adapter.layers
    return f"{module}.base_layer.bias" if inside else name


def _pattern(values: Mapping[str, Any], common: Any) -> dict[str, Any]:
    """The values that differ from the common one, by an anchored and escaped regex of the whole name."""
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != common}


def _plain(number: float) -> float | int:
    """A whole number without its decimal point, as PEFT writes alpha."""
    return int(number) if number == int(number) else number


def _read_config(file: Path) -> PeftConfig:
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        msg = f"{file}: {file.stat().st_size:,} bytes are too many for a config"
        raise FileFormatError(msg)
    try:
        config = PeftConfig.model_validate_json(file.read_bytes())
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors()]
        msg = f"{file}: not a PEFT config"
        raise FileFormatError.of(msg, faults) from error
    extra = config.model_extra or {}
    faults = [reason for field, reason in _REFUSED.items() if extra.get(field)]
    if config.peft_type != "LORA":
        faults.append(f"peft_type is {config.peft_type}, only LORA adapters are read")
    if faults:
        msg = f"{file}: this adapter cannot be read"
        raise FileFormatError.of(msg, faults)
    return config


def _layer(module: str, tensors: Mapping[str, Tensor], config: PeftConfig) -> AdapterLayer:
    """One module's update; ValueError says what does not fit."""
    embedding = "embedding_A" in tensors or "embedding_B" in tensors
    names = ("embedding_A", "embedding_B") if embedding else ("lora_A", "lora_B")
    missing = [name for name in names if name not in tensors]
    if missing:
        msg = f"{' and '.join(missing)} missing"
        raise ValueError(msg)
    A, B = (tensors[name] for name in names)
    rank = _first_match(config.rank_pattern, module, config.r)
    if A.ndim < 2 or A.ndim != B.ndim or A.shape[0] != rank or B.shape[1] != rank:
        msg = f"rank is {rank} by {CONFIG}, lora_A is {tuple(A.shape)} and lora_B {tuple(B.shape)}"
        raise ValueError(msg)
    if A.ndim > 2 and any(size != 1 for size in B.shape[2:]):
        msg = f"lora_B of a convolution ends in ones, got {tuple(B.shape)}"
        raise ValueError(msg)
    bad = sum(int((~torch.isfinite(tensor)).sum()) for tensor in tensors.values())
    if bad:
        msg = f"{bad:,} values are NaN or Inf"
        raise ValueError(msg)
    flat: LayerKind = "conv1d" if config.fan_in_fan_out else "linear"
    kind: LayerKind = "embedding" if embedding else "conv" if A.ndim > 2 else flat
    magnitude = tensors.get("magnitude")
    return AdapterLayer(
        A,
        B,
        float(_first_match(config.alpha_pattern, module, config.lora_alpha)),
        rslora=config.use_rslora,
        kind=kind,
        bias=tensors.get("bias"),
        magnitude=None if magnitude is None else magnitude.flatten(),
    )


def _first_match(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first key that PEFT would match with the module's name."""
    try:
        return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)
    except re.error as error:
        msg = f"a rank_pattern or alpha_pattern key is not a regex ({error})"
        raise ValueError(msg) from error
