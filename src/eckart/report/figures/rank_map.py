"""The map of needed rank: layers across, module kinds down."""

from typing import TYPE_CHECKING

import torch

from eckart.report import findings
from eckart.report.figures import style
from eckart.report.figures.curves import groups, middle, upper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eckart.operations import Analysis

MOST_LABELLED_COLUMNS = 40  # more leave no room for numbers in the cells


def rank_map(analysis: "Analysis", *, energy: float = 0.9) -> "Figure":
    """Heat map of the rank that keeps `energy` of each matrix: layers across, module kinds down.

    Where several matrices share a cell (the experts of a layer) it shows their median, and a rank that is
    only bounded counts at its upper limit. Matrices outside the layers have a column at the left. A zero matrix
    (one that a fine-tune left unchanged) is a white cell with a 0.
    """
    groups(analysis)
    where = analysis.places()
    needed: dict[tuple[str, int | None], list[float | None]] = {}
    zeros = [matrix for matrix in analysis.matrices if not matrix.spectrum.fro_norm]
    for matrix in analysis.matrices:
        place = where[matrix.name]
        needed.setdefault((place.kind, place.layer), []).append(upper(matrix.spectrum.rank_for_energy(energy)))
    kinds = list(analysis.by_kind())
    layers = sorted({layer for _, layer in needed}, key=lambda layer: -1 if layer is None else layer)
    cells = [[middle(list(needed.get((kind, layer), []))) for layer in layers] for kind in kinds]
    figure = style.new_figure(height_inches=min(9.0, max(2.8, 1.7 + 0.34 * len(kinds))))
    axes = figure.subplots()
    _paint(figure, axes, cells, energy)
    full = {kind: max(min(matrix.shape) for matrix in matrices) for kind, matrices in analysis.by_kind().items()}
    axes.set_yticks(range(len(kinds)), [f"{kind}  (≤ {full[kind]})" for kind in kinds])
    step = max(1, len(layers) // 20)
    names = ["–" if layer is None else str(layer) for layer in layers]
    axes.set_xticks(range(0, len(layers), step), names[::step])
    axes.set_xlabel("layer (–: outside the layers)" if None in layers else "layer", color=style.INK)
    several = len(needed) < len(analysis.matrices)
    cell = "the median of the matrices in a cell" if several else "matrix by matrix"
    shown = f"rank for {energy:.0%} of the energy, {cell}"
    if zeros:
        shown += "; 0: unchanged" if analysis.kind == "delta" else "; 0: a zero matrix"
        empty = {(where[matrix.name].kind, where[matrix.name].layer) for matrix in zeros}
        for kind, layer in empty:
            if middle(needed[kind, layer]) is None:
                place = (layers.index(layer), kinds.index(kind))
                axes.text(*place, "0", ha="center", va="center", fontsize=7, color=style.INK)
    style.headline(figure, findings.rank_map_finding(analysis, energy=energy), f"{findings.name(analysis)}: {shown}")
    return figure


def _paint(figure: "Figure", axes: "Axes", cells: list[list[float | None]], energy: float) -> None:
    """The coloured cells with their ranks, and the colour scale; cells without a matrix stay white."""
    values = torch.tensor([[float("nan") if cell is None else cell for cell in row] for row in cells])
    image = axes.imshow(values.numpy(), cmap="YlGnBu", aspect="auto", vmin=0)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, colors=style.INK)
    axes.set_xticks([column - 0.5 for column in range(1, values.shape[1])], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, values.shape[0])], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03)
    bar.set_label(f"rank for {energy:.0%} of the energy", color=style.INK, labelpad=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8, colors=style.SOFT)
    if values.shape[1] > MOST_LABELLED_COLUMNS:
        return
    highest = float(values.nan_to_num().max())
    for row, column in (~values.isnan()).nonzero().tolist():
        value = float(values[row, column])
        color = "white" if value > 0.6 * highest else style.INK
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
