"""Results as tables for a terminal of 80 columns."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from eckart.report.findings import name
from eckart.report.grid import Column, grid, is_summarised
from eckart.report.words import bytes_text, count_text, number_text, seconds_text

if TYPE_CHECKING:
    from eckart.evaluation import GainReport
    from eckart.operations import AdapterResult, Analysis, LayerRecord, Match, MatrixAnalysis, Preview
    from eckart.result import Skipped
    from eckart.training import DistillResult

SHOWN_LEFT_OUT = 4
SHOWN_ADAPTERS = 4
SUMMARY = "Each number is the median of a kind (lowest–highest)."


def analysis_table(analysis: "Analysis") -> RenderableType:
    """The ranks of an analysis, its totals, and what was left out.

    Returns:
        a rich renderable of at most 80 columns.
    """
    columns: list[Column[MatrixAnalysis]] = [
        Column("stable\nrank", lambda matrix: matrix.spectrum.stable_rank, "size"),
        Column("rank for 90%\nof energy", lambda matrix: matrix.spectrum.rank_for_energy(0.9)),
        Column("rank for\nerror < 10%", lambda matrix: matrix.spectrum.rank_for_error(0.1)),
    ]
    if analysis.kind == "delta" and any(matrix.noise for matrix in analysis.matrices):
        columns.append(Column("above\nnoise", lambda matrix: matrix.noise.signal_rank if matrix.noise else None))
    notes = [SUMMARY] if is_summarised(analysis.matrices) else []
    if not analysis.is_complete:
        notes.append("Ranges of single matrices and ≤ are certified limits; --full computes every singular value.")
    if analysis.kind == "delta":
        notes.append("Loss on text, not energy, tells how well a rank works: eckart extract --eval.")
    notes.append(
        f"{len(analysis.matrices)} matrices, {count_text(analysis.params)} parameters, "
        f"{seconds_text(analysis.seconds)}, peak memory {bytes_text(analysis.peak_rss_bytes)}"
    )
    table = grid(analysis.matrices, columns)
    return Group(Text(name(analysis), style="bold"), table, *map(Text, notes), *skipped_lines(analysis.skipped))


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


def preview_table(preview: "Preview") -> RenderableType:
    """What an operation would work on, read and write.

    Returns:
        a rich renderable of at most 80 columns.
    """
    count = max((len(match.ranks) for match in preview.matches), default=0)
    columns: list[Column[Match]] = [
        Column("rank" if count == 1 else f"rank of\nadapter {place + 1}", lambda match, place=place: match.ranks[place])
        for place in range(min(count, SHOWN_ADAPTERS))
    ]
    notes = [SUMMARY] if is_summarised(preview.matches) else []
    notes.append(
        f"{len(preview.matches)} modules match; {bytes_text(preview.read_bytes)} would be read and "
        f"{bytes_text(preview.written_bytes)} written. Nothing was."
    )
    head = Text(f"{preview.made_by}, dry run", style="bold")
    return Group(head, grid(preview.matches, columns), *map(Text, notes), *skipped_lines(preview.skipped))


def skipped_lines(skipped: Iterable["Skipped"]) -> list[Text]:
    """What was left out, as one line a reason: how many, why, and an example."""
    found = list(skipped)
    reasons = Counter(left.reason for left in found).most_common()
    example = {left.reason: left.name for left in reversed(found)}
    lines = [
        f"Left out: {count} × {reason} ({'such as ' if count > 1 else ''}{example[reason]})"
        for reason, count in reasons[:SHOWN_LEFT_OUT]
    ]
    rest = sum(count for _, count in reasons[SHOWN_LEFT_OUT:])
    return [Text(line) for line in [*lines, *([f"Left out: {rest} more"] if rest else [])]]


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
