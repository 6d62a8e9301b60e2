"""Spectra of a whole checkpoint, of the difference of two, or of an adapter, as one result."""

from eckart.operations.analysis.analyze import analyze
from eckart.operations.analysis.matrix import MatrixAnalysis
from eckart.operations.analysis.places import Place, by_kind, places
from eckart.operations.analysis.result import Analysis

__all__ = ["Analysis", "MatrixAnalysis", "Place", "analyze", "by_kind", "places"]
