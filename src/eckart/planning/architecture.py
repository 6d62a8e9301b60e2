"""A model's config, from a SOURCE or a mapping; the model built from it without weights, and its parameters."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from eckart.checkpoint import locate
from eckart.checkpoint.gguf_header import read_gguf_headers
from eckart.checkpoint.gguf_names import config_of
from eckart.checkpoint.model_config import FILE, read_config, read_config_file
from eckart.checkpoint.remote.table import download
from eckart.checkpoint.remote.urls import is_url
from eckart.checkpoint.source import local_path
from eckart.errors import EckartError, SourceError
from eckart.evaluation.model import quiet_transformers, require_transformers
from eckart.nn import LoRAConfig
from eckart.nn.injection import base_parameters
from eckart.nn.targets import find_targets, sizes_of
from eckart.planning.setting import Attention, PlanSetting

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def read_architecture(source: "str | Path | Mapping[str, Any] | PretrainedConfig") -> "PretrainedConfig":
    """The transformers config of a model; from the hub, nothing but the config is downloaded.

    Args:
        source: a folder with config.json, that file, a .gguf file, `pkg:DISTRIBUTION`, a hub name
            `org/name[@revision]`, the fields of a config, or a config, which is copied.

    Raises:
        SourceError: there is no config, or transformers does not know its architecture.
        MissingExtraError: transformers is not installed.
    """
    require_transformers("planning a model")
    if not isinstance(source, str | Path | Mapping):
        return copy.deepcopy(source)
    try:
        with quiet_transformers():
            if isinstance(source, str | Path):
                return _from_source(str(source))
            return _from_fields(dict(source), "this config")
    except EckartError:
        raise
    except Exception as error:  # transformers raises anything for a config that it does not expect
        raise _unbuildable(error, str(source)) from error


def build_model(config: "PretrainedConfig", setting: PlanSetting) -> "PreTrainedModel":
    """The model with new weights, on the current default device, in training mode.

    Raises:
        SourceError: the config does not name an architecture that transformers can build.
    """
    config = copy.deepcopy(config)
    # It describes how the checkpoint is stored; here the setting decides.
    config.__dict__.pop("quantization_config", None)
    kind = _class_of(config)
    attention = setting.attention if getattr(kind, "_supports_sdpa", True) else "eager"
    with quiet_transformers():
        try:
            model = kind._from_config(
                config, dtype=getattr(torch, setting.dtype), attn_implementation=attention
            ).train()
        except Exception as error:  # as above
            raise _unbuildable(error, "the config") from error
    if setting.gradient_checkpointing:
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
    return model


@dataclass(frozen=True)
class AdapterCount:
    """Number of parameters of an adapter.

    Attributes:
        modules: (out, in) of each adapted weight by the module's path, as the factors see it.
        trainable_params: entries of the factors, DoRA's magnitudes and trained biases.
        weight_params: entries of the adapted weights.
    """

    modules: Mapping[str, tuple[int, int]]
    trainable_params: int
    weight_params: int

    @property
    def saved(self) -> float:
        """Share of the adapted weights' entries that are not trained."""
        return 1 - self.trainable_params / self.weight_params


class Outline:
    """A model as its config describes it: all modules and shapes, without weights.

    Args:
        config: a transformers config, or its fields.

    Raises:
        SourceError: no model can be built from it.
        MissingExtraError: transformers is not installed.
    """

    def __init__(self, config: "Mapping[str, Any] | PretrainedConfig") -> None:
        self.config = read_architecture(config)
        with torch.device("meta"):
            self.model: nn.Module = build_model(self.config, PlanSetting(attention="eager"))

    @cached_property
    def total_params(self) -> int:
        """Parameters of the model, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def linear_params(self) -> int:
        """Parameters of the linear layers except the output layer: those that QLoRA quantizes."""
        return self.adapter(LoRAConfig(rank=1)).weight_params

    @cached_property
    def positions(self) -> int | None:
        """The model's context length in tokens; None if the config does not give it."""
        length = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return length if isinstance(length, int) else None

    @cached_property
    def attention(self) -> Attention:
        """The attention with the lowest memory that the model's code supports."""
        return "sdpa" if getattr(self.model, "_supports_sdpa", False) else "eager"

    def adapter(self, config: LoRAConfig) -> AdapterCount:
        """The parameters that `eckart.inject` adds for this config.

        Raises:
            MismatchError: the config does not fit the model.
        """
        modules, trainable = {}, 0
        for target in find_targets(self.model, config):
            out, inner = sizes_of(target.module, target.kind)
            modules[target.path] = (out, inner)
            trainable += target.rank * (out + inner) + (out if config.method == "dora" else 0)
        if config.bias != "none":
            inside = tuple(f"{path}." for path in modules)
            biases = {path: p for path, p in base_parameters(self.model).items() if path.rpartition(".")[2] == "bias"}
            taken = [p for path, p in biases.items() if config.bias == "all" or path.startswith(inside)]
            trainable += sum(p.numel() for p in taken)
        return AdapterCount(modules, trainable, sum(out * inner for out, inner in modules.values()))


def _unbuildable(error: Exception, source: str) -> SourceError:
    import transformers

    why = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return SourceError(f"transformers {transformers.__version__} cannot build {source}: {why}")


def _class_of(config: "PretrainedConfig") -> Any:
    """The class that the config names; otherwise the one with a language-model head, or the one without."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

    named = next(iter(config.architectures or ()), None)
    kind = getattr(transformers, named, None) if named else None
    if kind is None:
        for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING):
            if type(config) in mapping.keys():  # noqa: SIM118 - its keys are created on demand
                kind = mapping[type(config)]
                break
    if isinstance(kind, tuple):
        kind = kind[0]
    if kind is None or not hasattr(kind, "_from_config"):
        msg = (
            f"the config does not name a model that can be built (architectures: {config.architectures or 'none'}, "
            f"model_type: {config.model_type or 'none'}); expected one such as LlamaForCausalLM"
        )
        raise SourceError(msg)
    return kind


def _from_source(text: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    path = local_path(text) if is_url(text) else Path(text).expanduser()
    if path.is_file() and path.name.endswith(".json"):
        return _from_fields(read_config_file(path), text)
    if (path / FILE).is_file():
        return _from_fields(read_config(path), text)
    if path.exists() or text.startswith("pkg:"):
        files = locate(text)
        if files.is_gguf:
            download(files.weights)
            config_of(read_gguf_headers(files.weights[0]))  # refuses what transformers would divide by
            return AutoConfig.from_pretrained(files.folder, gguf_file=files.weights[0].name)
        return _from_fields(read_config_file(files.folder / FILE), text)
    name, _, revision = text.partition("@")
    return AutoConfig.from_pretrained(name, revision=revision or "main")


def _from_fields(fields: dict[str, Any], source: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    kind = fields.pop("model_type", None)
    if not isinstance(kind, str):
        msg = f"{source} has no model_type; expected a config.json of transformers"
        raise SourceError(msg)
    return AutoConfig.for_model(kind, **fields)
