"""Spectra of a whole checkpoint, of the difference of two, or of an adapter, as one result."""

from eckart.analysis.analyze import analyze
from eckart.analysis.matrix import MatrixAnalysis
from eckart.analysis.places import Place, by_kind, places
from eckart.analysis.result import Analysis

__all__ = ["Analysis", "MatrixAnalysis", "Place", "analyze", "by_kind", "places"]
