"""Exact numbers of parameters: of a model, and of an adapter of any rank on any modules, from the config alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from eckart.nn import LoRAConfig
from eckart.nn.injection import base_parameters
from eckart.nn.targets import find_targets, sizes_of
from eckart.planning.architecture import build_model, read_architecture
from eckart.planning.setting import Attention, PlanSetting

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class AdapterCount:
    """What an adapter would train.

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
        """Share of the adapted weights' entries that need no training."""
        return 1 - self.trainable_params / self.weight_params


class Outline:
    """A model as its config describes it: every module and shape, no weight.

    Args:
        config: of transformers, or its fields.

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
        """Numbers in the model, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def linear_params(self) -> int:
        """Entries of the linear layers but the output layer, which QLoRA puts into four bits."""
        return self.adapter(LoRAConfig(rank=1)).weight_params

    @cached_property
    def positions(self) -> int | None:
        """Tokens that the model can see at once, where the config tells."""
        found = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    @cached_property
    def attention(self) -> Attention:
        """The leanest that the model's code has."""
        return "sdpa" if getattr(self.model, "_supports_sdpa", False) else "eager"

    def adapter(self, config: LoRAConfig) -> AdapterCount:
        """What `eckart.inject` would make of this config, to the parameter.

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
