"""The style of all figures: white background, a light grid, colours that colour-blind readers can distinguish."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from eckart.checkpoint import atomic_file
from eckart.checkpoint.manifest import FORMAT
from eckart.errors import MissingExtraError, OutputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, with grey for its yellow, which is too light for a line on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)))
INK, SOFT, GRID = "#222222", "#666666", "#E4E4E4"

Spacing = Literal["linear", "doubling"]
T = TypeVar("T")

WIDTH_INCHES, DPI = 10.0, 160

METADATA: dict[str, dict[str, str | None]] = {  # without dates, so that drawing again gives the same file
    ".png": {"Software": FORMAT},
    ".svg": {"Creator": FORMAT, "Date": None},
    ".pdf": {"Creator": FORMAT, "CreationDate": None},
}


def new_figure(*, height_inches: float = 4.6) -> "Figure":
    """An empty figure that needs no display and no global state of pyplot.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as missing:
        raise MissingExtraError.for_extra("report", "drawing a figure") from missing  # noqa: EM101
    return Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI, layout="constrained", facecolor="white")


def line_style(position: int) -> dict[str, Any]:
    """Colour and dash pattern of the n-th line: eight colours, then the same dashed, then dotted."""
    return {
        "color": COLORS[position % len(COLORS)],
        "linestyle": DASHES[position // len(COLORS) % len(DASHES)],
    }


def headline(figure: "Figure", finding: str, detail: str) -> None:
    """The finding in bold at the top, and below it in grey what the figure shows."""
    height_points = 72 * figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 48 / height_points))  # type: ignore[union-attr]
    figure.text(0.01, 1 - 8 / height_points, finding, fontsize=13, fontweight="bold", color=INK, ha="left", va="top")
    figure.text(0.01, 1 - 28 / height_points, detail, fontsize=9.5, color=SOFT, ha="left", va="top")


def dress(axes: "Axes", *, x: str, y: str, title: str = "") -> None:
    """Axis labels, a light grid behind the lines, and no frame on the sides without a scale."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    if title:
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=SOFT, which="both", labelsize=9)


def rank_axis(axes: "Axes", highest: int, *, spacing: Spacing) -> None:
    """A rank axis from 1 to `highest`: linear, or with ticks at powers of two, as ranks of adapters usually are."""
    if spacing == "linear":
        axes.set_xlim(0, highest)
        return
    ticks = [2**power for power in range(highest.bit_length())]
    axes.set_xscale("log", base=2)
    axes.set_xlim(1, max(highest, 2))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def save(figure: "Figure", path: Path, *, force: bool = False) -> Path:
    """Write one figure, in the format that its name ends in; the same figure gives the same bytes.

    Raises:
        OutputError: the file exists and `force` is not given, or cannot be written.
    """
    import matplotlib as mpl

    _take_names_literally(figure)
    with atomic_file(path, force=force) as file, mpl.rc_context({"svg.hashsalt": FORMAT}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name in another script is drawn as boxes
        figure.savefig(file, metadata=METADATA[path.suffix])
    return path


def _take_names_literally(figure: "Figure") -> None:
    """A `$` in a name is no mathematics; only the numbers of an axis, such as 10⁻³, may be."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # type: ignore[attr-defined]
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        is_named = isinstance(axis.get_major_formatter(), FixedFormatter)
        for label in axis.get_ticklabels(which="both"):
            label.set_parse_math(not is_named)


def save_all(result: T, drawings: "Mapping[str, Callable[[T], Figure]]", folder: str | Path) -> list[Path]:
    """Draw every figure of a result as PNG, by its name.

    Raises:
        OutputError: the folder, which is created if it does not exist, cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failed:
        msg = f"cannot write figures to {folder}: {failed.strerror or failed}"
        raise OutputError(msg) from failed
    return [save(draw(result), folder / f"{name}.png", force=True) for name, draw in drawings.items()]
