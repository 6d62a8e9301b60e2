"""A low-rank workbench for neural-network weights: see the rank, extract the adapter, trust the numbers.

The names used daily are here and arrive when they are first used, so that importing eckart imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from eckart.version import __version__

if TYPE_CHECKING:
    from eckart.engine import Execution
    from eckart.errors import EckartError
    from eckart.formats import Adapter, AdapterLayer, load_adapter
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
    from eckart.operations import (
        AdapterResult,
        Analysis,
        Comparison,
        ConvertResult,
        MatrixAnalysis,
        MergeCheck,
        MergeResult,
        Mixture,
        QuantizeResult,
        RankChoice,
        UnmergeResult,
        analyze,
        check_merge,
        combine,
        compare,
        convert,
        extract,
        merge,
        quantize,
        resize,
        unmerge,
    )
    from eckart.planning import Plan, plan
    from eckart.training import DataOptions, TrainResult, TrainSettings, train

_HOMES = {
    "eckart.engine": ("Execution",),
    "eckart.errors": ("EckartError",),
    "eckart.formats": ("Adapter", "AdapterLayer", "load_adapter"),
    "eckart.linalg": (
        *("Allocation", "Interval", "LowRank", "RankBound", "Spectrum"),
        *("allocate", "factorize", "minimal_rank", "spectrum"),
    ),
    "eckart.nn": (
        *("Injection", "LoRAConfig", "adapter_of", "eject", "inject", "inject_adapter"),
        *("merge_weights", "quantize_model", "save_adapter", "set_adapters", "unmerge_weights"),
    ),
    "eckart.operations": (
        *("AdapterResult", "Analysis", "Comparison", "ConvertResult", "MatrixAnalysis", "MergeCheck", "MergeResult"),
        *("Mixture", "QuantizeResult", "RankChoice", "UnmergeResult", "analyze", "check_merge", "combine", "compare"),
        *("convert", "extract", "merge", "quantize", "resize", "unmerge"),
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
    "Execution",
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
