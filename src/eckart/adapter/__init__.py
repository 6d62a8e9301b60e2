"""Adapters as values and as files: taken from a fine-tune, resized, combined, merged, converted and compared."""

from eckart.adapter.adapter import Adapter, AdapterLayer, load_adapter
from eckart.adapter.combination.combine import combine, plan_combine
from eckart.adapter.combination.mixture import Mixture
from eckart.adapter.combination.plan import CombinePlan
from eckart.adapter.comparison.claimed_merge import check_merge
from eckart.adapter.comparison.compare import compare
from eckart.adapter.comparison.merge_check import MergeCheck, MergedMatrix
from eckart.adapter.comparison.result import Comparison, MatrixComparison
from eckart.adapter.conversion.convert import Conversion, ConvertResult, convert, plan_conversion
from eckart.adapter.extraction.extract import extract
from eckart.adapter.extraction.factors import FactorOptions
from eckart.adapter.extraction.scope import Scope
from eckart.adapter.merging.merge import MergeResult, merge
from eckart.adapter.merging.plan import MergePlan, plan_merge
from eckart.adapter.merging.unmerge import UnmergeResult, plan_unmerge, unmerge
from eckart.adapter.preview import Match, Preview
from eckart.adapter.quantisation.plan import QuantizePlan, plan_quantize
from eckart.adapter.quantisation.quantize import QuantizedLayer, QuantizeResult, quantize
from eckart.adapter.rank_choice import DEFAULT_RANK, Budget, RankChoice
from eckart.adapter.resizing.resize import ResizePlan, plan_resize, resize
from eckart.adapter.result import AdapterResult, LayerRecord

__all__ = [
    "DEFAULT_RANK",
    "Adapter",
    "AdapterLayer",
    "AdapterResult",
    "Budget",
    "CombinePlan",
    "Comparison",
    "Conversion",
    "ConvertResult",
    "FactorOptions",
    "LayerRecord",
    "Match",
    "MatrixComparison",
    "MergeCheck",
    "MergePlan",
    "MergeResult",
    "MergedMatrix",
    "Mixture",
    "Preview",
    "QuantizePlan",
    "QuantizeResult",
    "QuantizedLayer",
    "RankChoice",
    "ResizePlan",
    "Scope",
    "UnmergeResult",
    "check_merge",
    "combine",
    "compare",
    "convert",
    "extract",
    "load_adapter",
    "merge",
    "plan_combine",
    "plan_conversion",
    "plan_merge",
    "plan_quantize",
    "plan_resize",
    "plan_unmerge",
    "quantize",
    "resize",
    "unmerge",
]
