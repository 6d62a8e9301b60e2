"""The model of a config, built without weights: what a SOURCE or a mapping says, as transformers understands it."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eckart.checkpoint import locate
from eckart.checkpoint.source import read_json_object
from eckart.errors import SourceError
from eckart.evaluation.model import quiet_transformers, require_transformers
from eckart.planning.setting import PlanSetting

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def read_architecture(source: "str | Path | Mapping[str, Any] | PretrainedConfig") -> "PretrainedConfig":
    """The transformers config of a model; of one on the hub nothing else is fetched.

    Args:
        source: a folder with config.json, that file, a .gguf file, `pkg:DISTRIBUTION`, a hub name
            `org/name[@revision]`, the fields of a config, or a config itself, which is copied.

    Raises:
        SourceError: there is none, or transformers has no code for such a model.
        MissingExtraError: transformers is not installed.
    """
    transformers = require_transformers("planning a model")
    if not isinstance(source, str | Path | Mapping):
        return copy.deepcopy(source)
    try:
        with quiet_transformers():
            if isinstance(source, str | Path):
                return _from_source(str(source))
            return _from_fields(dict(source), "this config")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, SourceError):
            raise
        why = (str(error).splitlines() or [""])[0][:200]
        msg = f"{source} is no model that transformers {transformers.__version__} can build: {why}"
        raise SourceError(msg) from error


def build_model(config: "PretrainedConfig", setting: PlanSetting) -> "PreTrainedModel":
    """The model with fresh weights, on the device and of the kind of tensors that are current, in training mode.

    Raises:
        SourceError: the config names no architecture that transformers can build.
    """
    config = copy.deepcopy(config)
    # What a checkpoint is stored in; here the base is in the setting's dtype, or in NF4.
    config.__dict__.pop("quantization_config", None)
    kind = _class_of(config)
    attention = setting.attention if getattr(kind, "_supports_sdpa", True) else "eager"
    with quiet_transformers():
        model = kind._from_config(config, dtype=getattr(torch, setting.dtype), attn_implementation=attention).train()
    if setting.gradient_checkpointing:
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
    return model


def _class_of(config: "PretrainedConfig") -> Any:
    """The class of transformers: the one that its config names, for language models the one with a head."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

    named = next(iter(config.architectures or ()), None)
    kind = getattr(transformers, named, None) if named else None
    if kind is None:
        for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING):
            if type(config) in mapping.keys():  # noqa: SIM118 - it makes its keys as they are asked for
                kind = mapping[type(config)]
                break
    if isinstance(kind, tuple):
        kind = kind[0]
    if kind is None or not hasattr(kind, "_from_config"):
        msg = (
            f"the config names no model that can be built (architectures: {config.architectures or 'none'}, "
            f"model_type: {config.model_type or 'none'}); expected one such as LlamaForCausalLM"
        )
        raise SourceError(msg)
    return kind


def _from_source(text: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    path = Path(text).expanduser()
    if path.is_file() and path.name.endswith(".json"):
        return _from_fields(read_json_object(path), text)
    if (path / "config.json").is_file():
        return _from_fields(read_json_object(path / "config.json"), text)
    if path.exists() or text.startswith("pkg:"):
        files = locate(text)
        if files.is_gguf:
            return AutoConfig.from_pretrained(files.folder, gguf_file=files.weights[0].name)
        return _from_fields(read_json_object(files.folder / "config.json"), text)
    name, _, revision = text.partition("@")
    return AutoConfig.from_pretrained(name, revision=revision or "main")


def _from_fields(fields: dict[str, Any], source: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    kind = fields.pop("model_type", None)
    if not isinstance(kind, str):
        msg = f"{source} has no model_type, so nothing can be built from it; expected config.json of transformers"
        raise SourceError(msg)
    return AutoConfig.for_model(kind, **fields)
