"""An adapter that was extracted, resized or combined, as a table for a terminal of 80 columns."""

from statistics import median
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eckart.report.tables.grid import SUMMARY, Column, grid, is_summarized
from eckart.report.tables.lines import skipped_lines, unbroken
from eckart.report.words import bytes_text, count_text, number_text, seconds_text

if TYPE_CHECKING:
    from eckart.evaluation import GainReport
    from eckart.operations import AdapterResult, LayerRecord
    from eckart.training import DistillResult, GainCurve

REMEDIES = {"norm": "`modules_to_save=norm` saves them"}


def adapter_table(
    result: "AdapterResult",
    gain: "GainReport | None" = None,
    distilled: "DistillResult | None" = None,
    *,
    curve: "GainCurve | None" = None,
    per_layer: bool = False,
) -> RenderableType:
    """Ranks and errors of an adapter, its size, and how much of the fine-tune's gain it recovers.

    Args:
        result: the adapter.
        gain: its gain, if it was measured.
        distilled: its distillation, if there was one.
        curve: the measured ranks, if its rank was chosen by its gain.
        per_layer: one line per layer, also where there are many.

    Returns:
        a rich renderable of at most 80 columns.
    """
    columns: list[Column[LayerRecord]] = [
        Column("rank", lambda layer: layer.rank),
        Column("relative error", lambda layer: layer.error, "share"),
        Column("least possible", lambda layer: layer.error_lower_bound, "share"),
    ]
    if per_layer and any(layer.signal_rank is not None for layer in result.layers):
        columns.insert(1, Column("above\nnoise", lambda layer: layer.signal_rank))
    where = f"Adapter in {result.output}" if result.output else "Adapter"
    notes = [SUMMARY] if not per_layer and is_summarized(result.layers) else []
    what = (
        "Error of the outputs, as a share of what quantization cost"
        if result.made_by == "correct"
        else "Relative error"
    )
    notes.append(
        f"{what} over all layers: {_percent(result.error)}; the least possible at these ranks: "
        f"{_percent(result.error_lower_bound)}."
    )
    if (above := [layer.signal_rank for layer in result.layers if layer.signal_rank is not None]) and not per_layer:
        spread = f" ({min(above)}–{max(above)})" if min(above) < max(above) else ""
        notes.append(f"Above the rounding of the stored weights: {median(above):g} directions{spread}.")
    if result.guarantee:
        notes.append(result.guarantee)
    if distilled is not None:
        notes.append(distilled_text(distilled))
    if gain is not None:
        notes.append(_gain_text(gain))
    notes.append(
        f"{len(result.layers)} layers, {count_text(result.adapter.params)} parameters, "
        f"{bytes_text(result.nbytes)}, {seconds_text(result.seconds)}"
    )
    table = grid(result.layers, columns, per_matrix=per_layer)
    skipped = skipped_lines(result.skipped, REMEDIES)
    measured = [] if curve is None else [Text("Gain kept by rank", style="bold"), _curve_table(curve)]
    return Group(*measured, unbroken(where, style="bold"), table, *map(Text, notes), *skipped)


def _curve_table(curve: "GainCurve") -> Table:
    """The measured ranks with their losses and gains; the chosen one is marked."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    loss = "KL" if curve.report.metric == "kl" else "loss"
    for heading in ("", "rank", "parameters", f"{loss}, nats/token", "gain kept", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in curve.points:
        interval = point.report.interval
        shown = f"{interval.lower:.1%} – {interval.upper:.1%}" if interval else "–"
        row = (str(point.rank), count_text(point.params), f"{point.report.adapter_loss:.4f}", f"{point.gain:.1%}")
        table.add_row("→" if point is curve.chosen else "", *row, shown)
    return table


def _percent(share: float) -> str:
    """With two decimals; what would round to zero is a limit."""
    return f"{share:.2%}" if share == 0 or share >= 5e-5 else "< 0.01%"


def _gain_text(gain: "GainReport") -> str:
    """The losses in one sentence, and the share of the gain, or why there is none."""
    what = "KL to the fine-tune" if gain.metric == "kl" else "Loss"
    losses = (
        f"{what} on {gain.tokens:,} tokens: base {gain.base_loss:.4f}, fine-tune {gain.tuned_loss:.4f}, "
        f"base with adapter {gain.adapter_loss:.4f} nats per token."
    )
    if gain.gain_recovered is None:
        return f"{losses} No gain recovered: {gain.note}."
    interval = gain.interval
    between = f" (95 % interval {interval.lower:.1%} – {interval.upper:.1%})" if interval else ""
    return f"{losses}\nGain recovered: {number_text(100 * gain.gain_recovered)}%{between}"


def distilled_text(distilled: "DistillResult") -> str:
    """What a distillation did to KL, loss and gain on its held-out text, and whether its factors were kept."""
    before, after = distilled.before, distilled.after
    stopped = ", until the KL on held-out text no longer fell" if distilled.stopped else ""
    text = f"Distilled for {len(distilled.losses)} steps{stopped}."
    if after is not None:
        gains = [distilled.gain_recovered(agreement) for agreement in (before, after)]
        shares = [f"{number_text(100 * gain)}%" for gain in gains if gain is not None]
        text += (
            f" On {distilled.tokens:,} held-out tokens: KL to the teacher {before.kl:.4f} → {after.kl:.4f}, "
            f"loss {before.loss:.4f} → {after.loss:.4f} nats per token"
        )
        text += f", gain recovered {' → '.join(shares)}." if shares else "."
    if not distilled.kept:
        return f"{text} Not kept: {distilled.note}."
    return f"{text} The errors are those of the trained factors, which fit predictions, not weights."
