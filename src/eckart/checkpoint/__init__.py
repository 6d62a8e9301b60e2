"""Weights on disk and in memory: found, read by rows, told apart, compared and written."""

from eckart.checkpoint.checkpoint import Checkpoint, TensorInfo
from eckart.checkpoint.compare import compare_layouts
from eckart.checkpoint.layout import Layout, MatrixView, Skipped, layout
from eckart.checkpoint.matrices import DifferenceMatrix, WeightMatrix
from eckart.checkpoint.naming import matches
from eckart.checkpoint.open import open_checkpoint
from eckart.checkpoint.output import atomic_directory, atomic_file, check_output
from eckart.checkpoint.select import select
from eckart.checkpoint.source import SourceFiles, locate
from eckart.checkpoint.writer import TensorSpec, copy_companions, write_tensors

__all__ = [
    "Checkpoint",
    "DifferenceMatrix",
    "Layout",
    "MatrixView",
    "Skipped",
    "SourceFiles",
    "TensorInfo",
    "TensorSpec",
    "WeightMatrix",
    "atomic_directory",
    "atomic_file",
    "check_output",
    "compare_layouts",
    "copy_companions",
    "layout",
    "locate",
    "matches",
    "open_checkpoint",
    "select",
    "write_tensors",
]
