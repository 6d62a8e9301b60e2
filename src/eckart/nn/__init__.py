"""Layers that train: adapters in a live model."""

from eckart.nn.adapted import AdaptedModule
from eckart.nn.config import LoRAConfig
from eckart.nn.factors import LoRAFactors
from eckart.nn.inject import Injection, adapted_modules, adapters_off, eject, inject, set_adapters
from eckart.nn.merging import merge_weights, unmerge_weights
from eckart.nn.state import adapter_of, inject_adapter, save_adapter

__all__ = [
    "AdaptedModule",
    "Injection",
    "LoRAConfig",
    "LoRAFactors",
    "adapted_modules",
    "adapter_of",
    "adapters_off",
    "eject",
    "inject",
    "inject_adapter",
    "merge_weights",
    "save_adapter",
    "set_adapters",
    "unmerge_weights",
]
