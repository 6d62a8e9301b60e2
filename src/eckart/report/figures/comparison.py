"""Figures of a comparison: cosine and overlap by layer and module kind, and φ(i, j) next to chance; and as files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eckart.operations.analysis.places import forward_order, places
from eckart.operations.comparison.result import Comparison
from eckart.report.figures import style
from eckart.report.figures.heat_map import color_bar, layer_ticks, narrowed, paint
from eckart.report.words import number_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eckart.operations.comparison.merge_check import MergeCheck
    from eckart.operations.comparison.result import Alignment, MatrixComparison

RESULT = "comparison.json"


def alignment_map(comparison: Comparison) -> "Figure":
    """Heat maps of the cosine, and of the overlap φ of outputs over chance: layers across, module kinds down.

    Where several matrices share a cell (the experts of a layer) it shows their mean.
    """
    where = places(matrix.name for matrix in comparison.matrices)
    kinds = forward_order(place.kind for place in where.values())
    layers = sorted({place.layer for place in where.values()}, key=lambda layer: -1 if layer is None else layer)

    def cells(read: Callable[["MatrixComparison"], float | None]) -> Tensor:
        total, count = torch.zeros(len(kinds), len(layers)), torch.zeros(len(kinds), len(layers))
        for matrix in comparison.matrices:
            value, place = read(matrix), where[matrix.name]
            if value is not None:
                total[kinds.index(place.kind), layers.index(place.layer)] += value
                count[kinds.index(place.kind), layers.index(place.layer)] += 1
        return total / count

    figure = style.new_figure(height_inches=min(10.0, max(3.6, 2.4 + 0.5 * len(kinds))))
    upper, lower = figure.subplots(2, 1)
    cosines = cells(lambda matrix: matrix.cosine)
    largest = max(0.01, float(cosines.nan_to_num().abs().max()))
    limits = narrowed(cosines, (-largest, largest))
    signed = limits[0] < 0 < limits[1]
    image = paint(upper, cosines, cmap="RdBu" if signed else "YlGnBu", limits=(-largest, largest) if signed else limits)
    color_bar(figure, upper, image, "cosine")
    phi = cells(lambda matrix: matrix.outputs and matrix.outputs.shared)
    image = paint(lower, phi, cmap="YlGnBu", limits=narrowed(phi, (0, 1)))
    color_bar(figure, lower, image, "φ of outputs")
    for axes in (upper, lower):
        layer_ticks(axes, kinds, layers)
    lower.set_xlabel("layer (–: outside the layers)" if None in layers else "layer", color=style.INK)
    chances = sorted(matrix.outputs.chance for matrix in comparison.matrices if matrix.outputs)
    chance = f"φ is {number_text(chances[0])}–{number_text(chances[-1])} by chance" if chances else "no directions"
    finding = f"Cosine over all matrices: {number_text(comparison.cosine)}"
    style.headline(figure, finding, f"{_names(comparison)}: {chance}")
    return figure


def overlap_map(comparison: Comparison) -> "Figure":
    """Maps of φ(i, j), the mean over matrices, next to its value by chance: outputs above, inputs below.

    Only the matrices with the most directions are in the mean.

    Raises:
        ValueError: no pair of matrices has a direction on both sides.
    """
    spaces = {
        "outputs": [matrix.outputs for matrix in comparison.matrices if matrix.outputs],
        "inputs": [matrix.inputs for matrix in comparison.matrices if matrix.inputs],
    }
    if not spaces["outputs"]:
        msg = f"nothing to draw: {_names(comparison)} have no matrix with directions on both sides"
        raise ValueError(msg)
    figure = style.new_figure(height_inches=7.6)
    panels = figure.subplots(2, 2)
    shares = []
    for row, (label, alignments) in zip(panels, spaces.items(), strict=True):
        phi, chance, count = _mean_overlap(alignments)
        shares.append(f"{label} {number_text(float(phi[-1, -1]))} (chance {number_text(float(chance[-1, -1]))})")
        shared = (0.0, max(0.01, float(phi.max()), float(chance.max())))
        titles = (f"{label}: φ(i, j), mean of {count}", f"{label}: by chance")
        for axes, values, title in zip(row, (phi, chance), titles, strict=True):
            limits = narrowed(phi, shared) if values is phi else shared
            image = paint(axes, values, cmap="YlGnBu", limits=limits, square=True)
            bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.046)  # type: ignore[arg-type]
            bar.set_label("share in common", color=style.INK, labelpad=8)
            bar.outline.set_visible(False)  # type: ignore[operator]
            for ticks, size in ((axes.set_xticks, values.shape[1]), (axes.set_yticks, values.shape[0])):
                step = max(1, size // 8)
                ticks(range(0, size, step), [str(place + 1) for place in range(0, size, step)])
            axes.set_title(title, loc="left", fontsize=10, color=style.INK)
            axes.set_xlabel("leading j of B", color=style.INK)
            axes.set_ylabel("leading i of A", color=style.INK)
    detail = f"{_names(comparison)}: from singular vectors, independent of the scaling of the factors"
    style.headline(figure, f"Shared leading directions: {', '.join(shares)}", detail)
    return figure


def save_comparison_figures(result: "Comparison | MergeCheck", folder: Path) -> None:
    """Write `alignment.png` and `overlap.png` of a comparison that has something to draw.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    if isinstance(result, Comparison) and any(matrix.outputs for matrix in result.matrices):
        style.save_all(result, {"alignment": alignment_map, "overlap": overlap_map}, folder)


def _mean_overlap(alignments: "Sequence[Alignment]") -> tuple[Tensor, Tensor, int]:
    """φ and chance, means over the alignments of the most directions, and of how many that is."""
    shape = max((tuple(alignment.overlap.phi.shape) for alignment in alignments), key=lambda shape: (min(shape), shape))
    kept = [alignment.overlap for alignment in alignments if tuple(alignment.overlap.phi.shape) == shape]
    return (
        torch.stack([overlap.phi for overlap in kept]).mean(0),
        torch.stack([overlap.chance for overlap in kept]).mean(0),
        len(kept),
    )


def _names(comparison: Comparison) -> str:
    return f"A: {comparison.a}, B: {comparison.b}"
