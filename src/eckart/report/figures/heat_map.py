"""Cells of numbers as colours, with the numbers in them where there is room."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from eckart.report.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELLED_COLUMNS = 16  # more leave no room for numbers in the cells
MOST_TICKS = 20


def paint(axes: "Axes", values: Tensor, *, cmap: str, limits: tuple[float, float], square: bool = False) -> object:
    """Coloured cells, with their numbers where there is room; cells without a number stay white.

    Args:
        axes: drawn on.
        values: shape `(rows, columns)`; NaN is an empty cell.
        cmap: matplotlib's name of a colour map.
        limits: numbers at its two ends.
        square: keep cells square and without numbers.
    """
    image = axes.imshow(values.numpy(), cmap=cmap, aspect="equal" if square else "auto", vmin=limits[0], vmax=limits[1])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, colors=style.INK)
    axes.set_xticks([column - 0.5 for column in range(1, values.shape[1])], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, values.shape[0])], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    if values.shape[1] <= MOST_LABELLED_COLUMNS and not square:
        for row, column in (~values.isnan()).nonzero().tolist():
            value = float(values[row, column])
            colour = "white" if abs(value) > 0.6 * limits[1] else style.INK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    return image


def colour_bar(figure: "Figure", axes: "Axes", image: object, label: str) -> None:
    """The scale of the colours, beside the cells."""
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03)  # type: ignore[arg-type]
    bar.set_label(label, color=style.INK)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8, colors=style.SOFT)


def layer_ticks(axes: "Axes", kinds: Sequence[str], layers: Sequence[int | None]) -> None:
    """Module kinds down, layers across; `–` is what lies outside the layers."""
    step = max(1, len(layers) // MOST_TICKS)
    axes.set_yticks(range(len(kinds)), kinds)
    names = ["–" if layer is None else str(layer) for layer in layers]
    axes.set_xticks(range(0, len(layers), step), names[::step])
