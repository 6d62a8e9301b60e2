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
NARROW = 0.25  # share of a colour scale below which values look alike
LEAST_RANGE = 1e-3  # of a narrowed colour scale


def paint(axes: "Axes", values: Tensor, *, cmap: str, limits: tuple[float, float], square: bool = False) -> object:
    """Coloured cells, with their numbers where there is room; cells without a number stay white.

    Args:
        axes: drawn on.
        values: shape `(rows, columns)`; NaN is an empty cell.
        cmap: matplotlib's name of a colour map.
        limits: the numbers at its two ends.
        square: draw square cells without numbers.
    """
    image = axes.imshow(values.numpy(), cmap=cmap, aspect="equal" if square else "auto", vmin=limits[0], vmax=limits[1])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, colors=style.INK)
    axes.set_xticks([column - 0.5 for column in range(1, values.shape[1])], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, values.shape[0])], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    if values.shape[1] <= MOST_LABELLED_COLUMNS and not square:
        decimals = 2 if limits[1] - limits[0] > 0.1 else 4
        for row, column in (~values.isnan()).nonzero().tolist():
            value = float(values[row, column])
            dark = abs(value) > 0.6 * limits[1] if limits[0] < 0 else value > limits[0] + 0.6 * (limits[1] - limits[0])
            color = "white" if dark else style.INK
            axes.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", fontsize=7, color=color)
    return image


def narrowed(values: Tensor, limits: tuple[float, float]) -> tuple[float, float]:
    """The limits of a colour scale, narrowed where the values would all get nearly the same colour.

    Args:
        values: numbers of the cells; NaN is an empty cell.
        limits: of the full scale.

    Returns:
        `limits`, or the range of the values where that is less than a quarter of it; never narrower than 0.001.
    """
    known = values[~values.isnan()]
    if not len(known):
        return limits
    low, high = float(known.min()), float(known.max())
    if high - low >= NARROW * (limits[1] - limits[0]):
        return limits
    missing = max(0.0, LEAST_RANGE - (high - low)) / 2
    return low - missing, high + missing


def color_bar(figure: "Figure", axes: "Axes", image: object, label: str) -> None:
    """The colour scale, right of the cells."""
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03)  # type: ignore[arg-type]
    bar.set_label(label, color=style.INK, labelpad=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8, colors=style.SOFT)


def layer_ticks(axes: "Axes", kinds: Sequence[str], layers: Sequence[int | None]) -> None:
    """Module kinds down, layers across; `–` stands for modules outside the layers."""
    step = max(1, len(layers) // MOST_TICKS)
    axes.set_yticks(range(len(kinds)), kinds)
    names = ["–" if layer is None else str(layer) for layer in layers]
    axes.set_xticks(range(0, len(layers), step), names[::step])
