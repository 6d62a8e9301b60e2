"""A quantized model as a table for a terminal of 80 columns."""

from typing import TYPE_CHECKING, cast

from rich.console import Group, RenderableType
from rich.text import Text

from eckart.report.tables.adapter import distilled_text
from eckart.report.tables.grid import SUMMARY, Column, grid, is_summarized
from eckart.report.tables.lines import skipped_lines, unbroken
from eckart.report.words import bytes_text, count_text, seconds_text

if TYPE_CHECKING:
    from eckart.operations.quantization.quantize import QuantizedLayer, QuantizeResult
    from eckart.training import DistillResult


def quantize_table(result: "QuantizeResult") -> RenderableType:
    """The error of each layer, the size of the model, and what stays unquantized.

    Returns:
        a rich renderable of at most 80 columns.
    """
    columns: list[Column[QuantizedLayer]] = [Column("relative error", lambda layer: layer.error, "share")]
    notes = [SUMMARY] if is_summarized(result.layers) else []
    encoding = result.encoding.upper()
    notes += [
        f"Relative error over all layers: {result.error:.2%}.",
        f"{count_text(result.quantized_params)} of {count_text(result.params)} parameters in {encoding}, "
        f"{result.bytes_per_param:.3f} bytes each; {bytes_text(result.nbytes)} in all, {seconds_text(result.seconds)}",
    ]
    notes += [*_calibration_lines(result), *result.notes]
    head = unbroken(f"Model in {result.output}", style="bold")
    return Group(head, grid(result.layers, columns), *map(Text, notes), *skipped_lines(result.skipped))


def _calibration_lines(result: "QuantizeResult") -> list[str]:
    """What calibration changed, and the losses on held-out text."""
    lines, nearest = [], result.output_error(nearest=True)
    if nearest is not None:
        calibrated = sum(layer.damping is not None for layer in result.layers)
        lines.append(
            f"Error of the outputs on the calibration text: {result.output_error():.2%}, with the nearest codes "
            f"{nearest:.2%}; {calibrated} of {len(result.layers)} layers have calibrated codes."
        )
    if result.correction is not None:
        lines.append(
            f"Correction in {result.correction.output}: it leaves {result.correction.error:.1%} of the error of the "
            f"outputs; the least possible at these ranks is {result.correction.error_lower_bound:.1%}. "
            f"{bytes_text(result.correction.nbytes)}"
        )
    if result.distilled is not None:
        lines.append(distilled_text(cast("DistillResult", result.distilled)))
    if result.held_out is not None:
        losses = ", ".join(f"{label} {loss['mean']:.4f}" for label, loss in result.held_out.items())
        lines.append(f"Loss on held-out text, in nats per token: {losses}.")
    return lines
