"""What the commands do: each operation plans from headers, computes matrix by matrix, and writes its output whole."""

from eckart.operations.adapter_result import AdapterResult, LayerRecord
from eckart.operations.analysis import Analysis, MatrixAnalysis, analyze
from eckart.operations.combination.combine import combine, plan_combine
from eckart.operations.combination.mixture import Mixture
from eckart.operations.combination.plan import CombinePlan
from eckart.operations.comparison.claimed_merge import check_merge
from eckart.operations.comparison.compare import compare
from eckart.operations.comparison.merge_check import MergeCheck, MergedMatrix
from eckart.operations.comparison.result import Comparison, MatrixComparison
from eckart.operations.conversion import Conversion, ConvertResult, convert, plan_conversion
from eckart.operations.extraction.extract import extract
from eckart.operations.extraction.scope import Scope
from eckart.operations.factors import FactorOptions
from eckart.operations.merging.merge import MergeResult, merge
from eckart.operations.merging.plan import MergePlan, plan_merge
from eckart.operations.merging.unmerge import UnmergeResult, plan_unmerge, unmerge
from eckart.operations.preview import Match, Preview
from eckart.operations.quantization.plan import QuantizePlan, plan_quantize
from eckart.operations.quantization.quantize import QuantizedLayer, QuantizeResult, quantize
from eckart.operations.rank_choice import DEFAULT_RANK, Budget, RankChoice
from eckart.operations.resizing import ResizePlan, plan_resize, resize

__all__ = [
    "DEFAULT_RANK",
    "AdapterResult",
    "Analysis",
    "Budget",
    "CombinePlan",
    "Comparison",
    "Conversion",
    "ConvertResult",
    "FactorOptions",
    "LayerRecord",
    "Match",
    "MatrixAnalysis",
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
    "analyze",
    "check_merge",
    "combine",
    "compare",
    "convert",
    "extract",
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
