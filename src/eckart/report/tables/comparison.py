"""Comparisons as tables for a terminal of 80 columns: two adapters or checkpoints, or a merge that was checked."""

import shlex
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from eckart.linalg import Interval
from eckart.report.tables.grid import SUMMARY, Column, grid, is_summarized
from eckart.report.tables.lines import skipped_lines, unbroken
from eckart.report.words import number_text, seconds_text

if TYPE_CHECKING:
    from eckart.operations.comparison.merge_check import MergeCheck, MergedMatrix
    from eckart.operations.comparison.result import Alignment, Comparison, MatrixComparison

LISTED = 8  # names of tensors that differ
COMPARED = {"adapters": "updates", "checkpoints": "weights", "updates": "updates of the base"}
NEARLY_EQUAL = 0.99  # cosine of two checkpoints


def comparison_table(comparison: "Comparison") -> RenderableType:
    """Cosine and overlap of each pair of matrices, next to chance, and over all matrices.

    Returns:
        a rich renderable of at most 80 columns.
    """

    def share(alignment: "Alignment | None", *, by_chance: bool = False) -> float | None:
        return alignment and (alignment.chance if by_chance else alignment.shared)

    def count(matrix: "MatrixComparison", side: int) -> int | None:
        return len(matrix.intruders[side].found) if matrix.intruders else None

    ratio: Column[MatrixComparison] = Column(
        "\n‖B‖/‖A‖", lambda m: m.norm_b / m.norm_a if m.norm_a > 0 else None, "size"
    )
    counts: list[Column[MatrixComparison]] = [
        Column("intr.\nA", lambda m: count(m, 0), "size"),
        Column("\nB", lambda m: count(m, 1), "size"),
    ]
    columns: list[Column[MatrixComparison]] = [
        Column("\ncosine", lambda m: m.cosine, "size"),
        Column("outputs\nφ", lambda m: share(m.outputs), "size"),
        Column("by\nchance", lambda m: share(m.outputs, by_chance=True), "size"),
        Column("inputs\nφ", lambda m: share(m.inputs), "size"),
        Column("by\nchance", lambda m: share(m.inputs, by_chance=True), "size"),
        *(counts if any(matrix.intruders for matrix in comparison.matrices) else [ratio]),
    ]
    matrices = comparison.matrices
    notes = [SUMMARY] if is_summarized(matrices) else []
    notes.append(
        f"Over all matrices: cosine {number_text(comparison.cosine)}, ‖A‖ {comparison.norm_a:.4g}, "
        f"‖B‖ {comparison.norm_b:.4g}, ‖A − B‖ {comparison.norm_difference:.4g}."
    )
    most = max((len(m.outputs.overlap.phi) for m in matrices if m.outputs), default=0)
    if most:
        notes.append(f"φ: share of the leading directions (up to {most}) that A and B share; 1 is all of them.")
    notes += [text for text in (_intruder_text(comparison), _unpaired_text(comparison)) if text]
    notes.append(f"{len(matrices)} matrices, {seconds_text(comparison.seconds)}")
    nearly_equal = comparison.kind == "checkpoints" and (comparison.cosine or 0) > NEARLY_EQUAL
    analyze = f"eckart analyze {shlex.quote(comparison.b)} --base {shlex.quote(comparison.a)}"
    hint = [Text("The checkpoints are nearly equal; to see their difference:"), unbroken(f"  {analyze}")]
    sides = [("A", comparison.a), ("B", comparison.b), ("base", comparison.base)]
    head = [unbroken(f"{side}: {source}", style="bold") for side, source in sides if source]
    head += [Text(f"{COMPARED[comparison.kind]} compared"), *(hint if nearly_equal else [])]
    return Group(*head, grid(matrices, columns), *map(Text, notes), *skipped_lines(comparison.skipped))


def merge_check_table(check: "MergeCheck") -> RenderableType:
    """The verdict on a claimed merge, and the measures of what it should have changed.

    Returns:
        a rich renderable of at most 80 columns.
    """
    columns: list[Column[MergedMatrix]] = [
        Column("off by\nulps", lambda m: m.ulps, "size"),
        Column("relative error\nof the update", lambda m: m.error, "size"),
        Column("fitting\nweight", lambda m: m.weight and _middle(m.weight), "size"),
    ]
    notes = [SUMMARY] if is_summarized(check.matrices) else []
    verdicts = [matrix.verdict for matrix in check.matrices]
    notes.append(
        f"{len(verdicts)} changed matrices: {verdicts.count('equal')} equal bit for bit, "
        f"{verdicts.count('rounding')} within rounding, {verdicts.count('differs')} neither. "
        f"{check.unchanged} other tensors are the base's; {seconds_text(check.seconds)}."
    )
    for what, names in (("changed, but no adapter covers it", check.altered), ("", check.faults)):
        notes += [f"{name}{': ' if what else ''}{what}" for name in names[:LISTED]]
        if len(names) > LISTED:
            notes.append(f"and {len(names) - LISTED} more")
    head = unbroken(f"Verdict: {verdict_text(check)}", style="bold")
    return Group(head, grid(check.matrices, columns), *map(Text, notes), *skipped_lines(check.not_checked))


def verdict_text(check: "MergeCheck") -> str:
    """The verdict as a sentence."""
    return verdict_sentence(check.to_json())


def verdict_sentence(check: dict[str, Any]) -> str:
    """The verdict of a `comparison.json` of a checked merge, as a sentence."""
    parts = [
        adapter if weight == 1 else f"{number_text(weight)} × {adapter}"
        for adapter, weight in zip(check["adapters"], check["weights"], strict=True)
    ]
    weight = check["weight"] and (check["weight"]["lower"] + check["weight"]["upper"]) / 2
    merged, claim = check["merged"], f"{check['base']} + {' + '.join(parts)}"
    sentence = {
        "equal": f"{merged} is {claim}, bit for bit",
        "rounding": f"{merged} is {claim}, within the rounding of a merge",
        "other weight": f"{merged} is not {claim}: it fits with weight {number_text(weight)}",
        "not merged": f"{merged} is not {claim}: the adapter is not in it",
        "undecided": f"{merged} may be {claim}: the update is too small compared with rounding to tell",
        "differs": f"{merged} is not {claim}",
    }[check["verdict"]]
    return f"{sentence} (not everything was checked)." if check["not_checked"] else f"{sentence}."


def _middle(weights: Interval) -> float:
    return (weights.lower + weights.upper) / 2


def _intruder_text(comparison: "Comparison") -> str | None:
    both = [matrix.intruders for matrix in comparison.matrices if matrix.intruders]
    if not both:
        return None
    proved = [sum(len(pair[side].found) for pair in both) for side in (0, 1)]
    open_ = sum(len(found.undecided) for pair in both for found in pair)
    asked = sum(len(pair[0].lower) for pair in both)
    undecided = f"; {open_} more are undecided" if open_ else "; all others are proved not to be"
    return (
        f"Intruder dimensions among the {asked} leading directions of base + A and of base + B: {proved[0]} and "
        f"{proved[1]}, proved (|cos| below {both[0][0].threshold:g} with every direction of the base){undecided}."
    )


def _unpaired_text(comparison: "Comparison") -> str | None:
    counts = [sum(item.side == side for item in comparison.unpaired) for side in ("a", "b")]
    if not any(counts):
        return None
    example = comparison.unpaired[0].name
    return f"Only in A: {counts[0]}, only in B: {counts[1]}, such as {example}; a missing matrix counts as zero."
