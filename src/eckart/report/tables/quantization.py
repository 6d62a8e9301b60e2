"""A model in NF4 as a table for a terminal of 80 columns."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from eckart.report.tables.grid import SUMMARY, Column, grid, is_summarized
from eckart.report.tables.lines import skipped_lines, unbroken
from eckart.report.words import bytes_text, count_text, seconds_text

if TYPE_CHECKING:
    from eckart.operations.quantization.quantize import QuantizedLayer, QuantizeResult


def quantize_table(result: "QuantizeResult") -> RenderableType:
    """The error of each layer, the size of the model, and what stays unquantized.

    Returns:
        a rich renderable of at most 80 columns.
    """
    columns: list[Column[QuantizedLayer]] = [Column("relative error", lambda layer: layer.error, "share")]
    notes = [SUMMARY] if is_summarized(result.layers) else []
    notes += [
        f"Relative error over all layers: {result.error:.2%}.",
        f"{count_text(result.quantized_params)} of {count_text(result.params)} parameters in NF4, "
        f"{result.bytes_per_param:.3f} bytes each; {bytes_text(result.nbytes)} in all, {seconds_text(result.seconds)}",
    ]
    head = unbroken(f"Model in {result.output}", style="bold")
    return Group(head, grid(result.layers, columns), *map(Text, notes), *skipped_lines(result.skipped))
