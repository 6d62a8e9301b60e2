"""`adapter_config.json`: what PEFT's tensors mean, read and written.

Rank and alpha hold for all modules unless `rank_pattern` or `alpha_pattern` says otherwise: keys there are regexes, so
every name is escaped and anchored when written. Source: PEFT's `tuners/lora/config.py`.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eckart.adapter.adapter import Adapter
from eckart.errors import FileFormatError, MismatchError

CONFIG = "adapter_config.json"
_MAX_CONFIG_BYTES = 16 * 2**20
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


def read_config(file: Path) -> PeftConfig:
    """The config in a file.

    Raises:
        FileFormatError: it is damaged, or of an adapter that is not read; every fault is listed.
    """
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
    saved = sorted({name.rpartition(".")[0] for name in adapter.modules_to_save if not is_trained_bias(name, adapter)})
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


def is_trained_bias(name: str, adapter: Adapter) -> bool:
    """Whether a whole tensor is a bias that PEFT trained in place (`bias` other than "none")."""
    return name.endswith(".bias") and adapter.config.get("bias", "none") != "none"


def first_match(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first key that PEFT would match with the module's name."""
    try:
        return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)
    except re.error as error:
        msg = f"a rank_pattern or alpha_pattern key is not a regex ({error})"
        raise ValueError(msg) from error


def _pattern(values: Mapping[str, Any], common: Any) -> dict[str, Any]:
    """The values that differ from the common one, by an anchored and escaped regex of the whole name."""
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != common}


def _plain(number: float) -> float | int:
    """A whole number without its decimal point, as PEFT writes alpha."""
    return int(number) if number == int(number) else number
