"""Factors of an update in the orientation in which a base stores its matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.adapter import AdapterLayer, LayerOutline
    from eckart.checkpoint import MatrixView


def outputs_are_columns(layer: AdapterLayer | LayerOutline, view: MatrixView) -> bool:
    """Whether an output is a column of the stored matrix, as with (in, out) storage and with embeddings.

    For an expert, shapes decide: PEFT's releases and models disagree about the order of its dimensions.
    """
    rows, columns = view.stored_shape
    if view.kind == "expert" and rows != columns:
        return (layer.lora_B.shape[0], layer.lora_A.shape[1]) == (columns, rows)
    return bool(view.swaps_factors) or layer.kind == "embedding"


def stored_factors(layer: AdapterLayer, view: MatrixView) -> tuple[Tensor, Tensor]:
    """Factors `(rows, rank)` and `(rank, columns)` of a layer's update, unscaled, in the base's stored orientation.

    The base's layout decides, not the adapter's kind: the same file fits a Linear and a Conv1D.
    """
    A, B = layer.lora_A.flatten(1), layer.lora_B.flatten(1)
    return (A.T, B.T) if outputs_are_columns(layer, view) else (B, A)
