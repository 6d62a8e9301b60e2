"""A low-rank workbench for neural-network weights: see the rank, extract the adapter, trust the numbers.

The names used daily are here and arrive when they are first used, so that importing eckart imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eckart.adapter import (
        Adapter,
        AdapterLayer,
        AdapterResult,
        Comparison,
        ConvertResult,
        MergeCheck,
        MergeResult,
        Mixture,
        QuantizeResult,
        RankChoice,
        UnmergeResult,
        check_merge,
        combine,
        compare,
        convert,
        extract,
        load_adapter,
        merge,
        quantize,
        resize,
        unmerge,
    )
    from eckart.analysis import Analysis, MatrixAnalysis, analyze
    from eckart.engine import Run
    from eckart.errors import EckartError
    from eckart.linalg import (
        Allocation,
        Interval,
        LowRank,
        RankBound,
        Spectrum,
        allocate,
        factorize,
        minimal_rank,
        spectrum,
    )
    from eckart.nn import (
        Injection,
        LoRAConfig,
        adapter_of,
        eject,
        inject,
        inject_adapter,
        merge_weights,
        quantize_model,
        save_adapter,
        set_adapters,
        unmerge_weights,
    )
    from eckart.planning import Plan, plan
    from eckart.training import DataOptions, TrainResult, TrainSettings, train

__version__ = "0.1.0"

_HOMES = {
    "eckart.adapter": (
        *("Adapter", "AdapterLayer", "AdapterResult", "Comparison", "ConvertResult", "MergeCheck", "MergeResult"),
        *("Mixture", "QuantizeResult", "RankChoice", "UnmergeResult", "check_merge", "combine", "compare", "convert"),
        *("extract", "load_adapter", "merge", "quantize", "resize", "unmerge"),
    ),
    "eckart.analysis": ("Analysis", "MatrixAnalysis", "analyze"),
    "eckart.engine": ("Run",),
    "eckart.errors": ("EckartError",),
    "eckart.linalg": (
        *("Allocation", "Interval", "LowRank", "RankBound", "Spectrum"),
        *("allocate", "factorize", "minimal_rank", "spectrum"),
    ),
    "eckart.nn": (
        *("Injection", "LoRAConfig", "adapter_of", "eject", "inject", "inject_adapter"),
        *("merge_weights", "quantize_model", "save_adapter", "set_adapters", "unmerge_weights"),
    ),
    "eckart.planning": ("Plan", "plan"),
    "eckart.training": ("DataOptions", "TrainResult", "TrainSettings", "train"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Adapter",
    "AdapterLayer",
    "AdapterResult",
    "Allocation",
    "Analysis",
    "Comparison",
    "ConvertResult",
    "DataOptions",
    "EckartError",
    "Injection",
    "Interval",
    "LoRAConfig",
    "LowRank",
    "MatrixAnalysis",
    "MergeCheck",
    "MergeResult",
    "Mixture",
    "Plan",
    "QuantizeResult",
    "RankBound",
    "RankChoice",
    "Run",
    "Spectrum",
    "TrainResult",
    "TrainSettings",
    "UnmergeResult",
    "__version__",
    "adapter_of",
    "allocate",
    "analyze",
    "check_merge",
    "combine",
    "compare",
    "convert",
    "eject",
    "extract",
    "factorize",
    "inject",
    "inject_adapter",
    "load_adapter",
    "merge",
    "merge_weights",
    "minimal_rank",
    "plan",
    "quantize",
    "quantize_model",
    "resize",
    "save_adapter",
    "set_adapters",
    "spectrum",
    "train",
    "unmerge",
    "unmerge_weights",
]


def __getattr__(name: str) -> object:
    """A daily name, imported from its package at its first use."""
    if name not in _HOME_OF:
        msg = f"module 'eckart' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The daily names beside what is already here."""
    return sorted({*globals(), *_HOME_OF})
