"""Adapters as values and as files, and how they are taken from a fine-tune."""

from eckart.adapter.adapter import Adapter, AdapterLayer, load_adapter
from eckart.adapter.extract import extract
from eckart.adapter.factors import FactorOptions
from eckart.adapter.preview import Match, Preview
from eckart.adapter.rank_choice import DEFAULT_RANK, Budget, RankChoice
from eckart.adapter.result import AdapterResult, LayerRecord
from eckart.adapter.scope import Scope

__all__ = [
    "DEFAULT_RANK",
    "Adapter",
    "AdapterLayer",
    "AdapterResult",
    "Budget",
    "FactorOptions",
    "LayerRecord",
    "Match",
    "Preview",
    "RankChoice",
    "Scope",
    "extract",
    "load_adapter",
]
