"""A training as a table for a terminal of 80 columns."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from eckart.report.tables.grid import SUMMARY, Column, grid, is_summarized
from eckart.report.tables.lines import Paragraph, unbroken
from eckart.report.words import bytes_text, count_text, seconds_text

if TYPE_CHECKING:
    from eckart.training import TrainResult
    from eckart.training.trajectory import LayerDynamics, Numbers


def training_table(result: "TrainResult") -> RenderableType:
    """How much every weight changed, the held-out loss before and after, and what the training took.

    Returns:
        a rich renderable of at most 80 columns.
    """
    notes: list[str] = []
    parts: list[RenderableType] = [
        unbroken(f"Adapter in {result.output}" if result.output else "Adapter", style="bold")
    ]
    if result.dynamics is not None:
        parts.append(updates_grid(result.dynamics.layers))
        notes += [SUMMARY] if is_summarized(result.dynamics.layers) else []
    before, after = result.heldout_loss_before, result.heldout_loss_after
    notes.append(
        f"Loss on {result.heldout_tokens:,} held-out tokens: {before:.4f} before, {after:.4f} after "
        f"({after - before:+.4f}) nats per token."
    )
    share = result.trainable_params / result.total_params
    notes.append(
        f"{count_text(result.trainable_params)} of {count_text(result.total_params)} parameters trained ({share:.2%}), "
        f"{result.steps} steps in {seconds_text(result.seconds)}, peak memory {bytes_text(result.peak_bytes)}"
    )
    return Group(*parts, *map(Paragraph, notes))


def updates_grid(layers: Sequence["LayerDynamics"]) -> RenderableType:
    """The update of every layer at the end: its size relative to the weight, and its effective rank."""
    columns: list[Column[LayerDynamics]] = [
        Column("rank", lambda layer: layer.rank),
        Column("update\n‖ΔW‖ / ‖W‖", lambda layer: _last(layer.relative_norm), "share"),
        Column("effective\nrank", lambda layer: _last(layer.effective_rank), "size"),
    ]
    return grid(layers, columns)


def _last(numbers: "Numbers") -> float | None:
    return numbers[-1] if numbers else None
