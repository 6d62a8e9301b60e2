"""What a merge or an unmerge wrote, as a few lines for a terminal."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from eckart.report.tables.lines import skipped_lines, unbroken
from eckart.report.words import bytes_text, number_text, seconds_text

if TYPE_CHECKING:
    from eckart.operations.merging.merge import MergeResult
    from eckart.operations.merging.unmerge import UnmergeResult

REPORTED_ERROR = 0.01  # of the update: a smaller rounding error is not reported
MOSTLY_LOST = 0.5  # error of the update above which most of what was merged is lost


def merge_table(result: "MergeResult") -> RenderableType:
    """Where the model is, what changed, and the error of quantizing it again.

    Returns:
        a rich renderable.
    """
    lines = [_counts(result)]
    if result.untied:
        lines.append("The output layer now has its own weight: it no longer shares the embedding's.")
    if result.requantization_error is not None:
        error = f"{result.requantization_error:.2%} of the merged weights"
        cost = f"Quantized again to {result.encoding}, with an error of {error}"
        if result.update_error is not None:
            cost += f" and {_times(result.update_error)} the update"
            is_lost = result.update_error > MOSTLY_LOST and result.held_out is None
            cost += ": most of what was merged is lost" if is_lost else ""
        lines.append(f"{cost}. {_remedy(result)}")
        lines += [*_gain_lines(result), *result.notes]
    elif result.update_error is not None and result.update_error > REPORTED_ERROR:
        lines.append(
            f"Rounding to the stored data type has an error of {_times(result.update_error)} the update, as any merge "
            "into it has; `dtype=float32` avoids it."
        )
    return _lines(f"Model in {result.output}", lines, result)


def _remedy(result: "MergeResult") -> str:
    if result.held_out is not None:
        return "The codes are those that keep the outputs of the layers, not the nearest ones to the weights."
    return "`calibrate=TEXT` chooses codes that keep it; `dtype=bfloat16` writes plain weights without this error."


def _gain_lines(result: "MergeResult") -> list[str]:
    """The losses on held-out text, and how much of the adapters' gain is left."""
    if result.held_out is None:
        return []
    losses = ", ".join(f"{label} {loss['mean']:.4f}" for label, loss in result.held_out.items())
    lines = [f"Loss on held-out text, in nats per token: {losses}."]
    kept = {label: result.gain_kept(label) for label in ("nearest codes", "written")}
    if kept["written"] is not None and kept["nearest codes"] is not None:
        lines.append(
            f"Of the adapter's gain next to the base, {kept['written']:.0%} is kept; with the nearest codes "
            f"{kept['nearest codes']:.0%}."
        )
    return lines


def unmerge_table(result: "UnmergeResult") -> RenderableType:
    """Where the model is, and how exactly it was restored.

    Returns:
        a rich renderable.
    """
    lines = [
        _counts(result),
        f"Merging again gives {_share(result.bit_equal)} of the changed entries back bit for bit.",
    ]
    if result.base_equal is not None and result.max_ulps is not None:
        lines.append(
            f"{_share(result.base_equal)} equal the base bit for bit; the largest difference from it is "
            f"{result.max_ulps:.3g} ulp."
        )
    return _lines(f"Model in {result.output}", lines, result)


def _counts(result: "MergeResult | UnmergeResult") -> str:
    return (
        f"{result.changed} of {result.tensors} tensors changed, {bytes_text(result.nbytes)}, "
        f"{seconds_text(result.seconds)}"
    )


def _share(share: float) -> str:
    """In percent; only all of it reads as 100%."""
    return "100%" if share == 1 else f"{min(share, 0.9999):.2%}"


def _times(share: float) -> str:
    return f"{share:.1%} of" if share < 1 else f"{number_text(share)} times"


def _lines(head: str, lines: list[str], result: "MergeResult | UnmergeResult") -> Group:
    return Group(unbroken(head, style="bold"), *map(Text, lines), *skipped_lines(result.skipped))
