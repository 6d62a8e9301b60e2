"""Layers that train: adapters in a live model."""

from eckart.nn.adapted import AdaptedModule
from eckart.nn.config import LoRAConfig
from eckart.nn.factors import LoRAFactors
from eckart.nn.initializers import initialize
from eckart.nn.inject import Injection, adapted_modules, adapters_off, eject, inject, set_adapters
from eckart.nn.merging import merge_weights, unmerge_weights
from eckart.nn.quantize import quantize_model
from eckart.nn.quantized import Nf4Linear
from eckart.nn.state import adapter_of, inject_adapter, save_adapter

__all__ = [
    "AdaptedModule",
    "Injection",
    "LoRAConfig",
    "LoRAFactors",
    "Nf4Linear",
    "adapted_modules",
    "adapter_of",
    "adapters_off",
    "eject",
    "initialize",
    "inject",
    "inject_adapter",
    "merge_weights",
    "quantize_model",
    "save_adapter",
    "set_adapters",
    "unmerge_weights",
]
