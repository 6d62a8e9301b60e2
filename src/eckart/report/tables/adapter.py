"""An adapter that was extracted, resized or combined, as a table for a terminal of 80 columns."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from eckart.report.tables.grid import SUMMARY, Column, grid, is_summarised
from eckart.report.tables.skipped import skipped_lines
from eckart.report.words import bytes_text, count_text, number_text, seconds_text

if TYPE_CHECKING:
    from eckart.evaluation import GainReport
    from eckart.operations import AdapterResult, LayerRecord
    from eckart.training import DistillResult


def adapter_table(
    result: "AdapterResult", gain: "GainReport | None" = None, distilled: "DistillResult | None" = None
) -> RenderableType:
    """Ranks and errors of an adapter that was made, its size, and what of the fine-tune's gain it recovers.

    Returns:
        a rich renderable of at most 80 columns.
    """
    columns: list[Column[LayerRecord]] = [
        Column("rank", lambda layer: layer.rank),
        Column("relative error", lambda layer: layer.error, "share"),
        Column("least possible", lambda layer: layer.error_lower_bound, "share"),
    ]
    where = f"Adapter in {result.output}" if result.output else "Adapter"
    notes = [SUMMARY] if is_summarised(result.layers) else []
    notes.append(
        f"All layers together: relative error {result.error:.2%}; no adapter of these ranks has less than "
        f"{result.error_lower_bound:.2%}."
    )
    if result.guarantee:
        notes.append(result.guarantee)
    if distilled is not None:
        notes.append(_distilled_text(distilled))
    if gain is not None:
        notes.append(_gain_text(gain))
    notes.append(
        f"{len(result.layers)} layers, {count_text(result.adapter.params)} parameters, "
        f"{bytes_text(result.nbytes)}, {seconds_text(result.seconds)}"
    )
    table = grid(result.layers, columns)
    return Group(Text(where, style="bold"), table, *map(Text, notes), *skipped_lines(result.skipped))


def _gain_text(gain: "GainReport") -> str:
    """The losses in one sentence, and the share of the gain, or why there is none."""
    losses = (
        f"Loss on {gain.tokens:,} tokens: base {gain.base_loss:.4f}, fine-tune {gain.tuned_loss:.4f}, "
        f"base with adapter {gain.adapter_loss:.4f} nats per token."
    )
    if gain.gain_recovered is None:
        return f"{losses} No gain recovered: {gain.note}."
    return f"{losses}\nGain recovered: {number_text(100 * gain.gain_recovered)}%"


def _distilled_text(distilled: "DistillResult") -> str:
    """What a distillation did to KL, loss and gain on its held-out text, and whether it is kept."""
    before, after = distilled.before, distilled.after
    said = f"Distilled for {len(distilled.losses)} steps."
    if after is not None:
        gains = [distilled.gain_recovered(agreement) for agreement in (before, after)]
        shares = [f"{number_text(100 * gain)}%" for gain in gains if gain is not None]
        said += (
            f" On {distilled.tokens:,} held-out tokens: KL to the teacher {before.kl:.4f} → {after.kl:.4f}, "
            f"loss {before.loss:.4f} → {after.loss:.4f} nats per token"
        )
        said += f", gain recovered {' → '.join(shares)}." if shares else "."
    if not distilled.kept:
        return f"{said} Not kept: {distilled.note}."
    return f"{said} The errors by weights are those of the trained factors, which follow predictions instead."
