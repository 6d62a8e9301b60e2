"""Figures of how updates grow: size, rank, directions and spectra over the steps, and where in the model."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

import torch

from eckart.operations.analysis.places import by_kind, places
from eckart.report.figures import style
from eckart.report.figures.heat_map import color_bar, layer_ticks, paint
from eckart.report.words import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eckart.training.trajectory import Dynamics, LayerDynamics

SPECTRA = 8  # layers whose spectrum is drawn
Read = Callable[["LayerDynamics"], Sequence[float | None]]


def growth_figure(dynamics: "Dynamics") -> "Figure":
    """Norms of the factors and of the update, and its effective rank, over the steps.

    A line is the median over the layers of a module kind, the bar at the right their range at the end.
    """
    kinds = by_kind(dynamics.layers)
    figure = style.new_figure(height_inches=6.8)
    panels = figure.subplots(2, 2)
    shown: list[tuple[str, Read]] = [
        ("‖A‖", lambda layer: layer.A_norm),
        ("‖B‖", lambda layer: layer.B_norm),
        ("‖ΔW‖ / ‖W‖", lambda layer: layer.relative_norm),
        ("effective rank of ΔW", lambda layer: layer.effective_rank),
    ]
    for axes, (label, read) in zip(panels.flat, shown, strict=True):
        _draw_kinds(axes, dynamics.steps, kinds, read)
        style.dress(axes, x="step", y=label)
        step_axis(axes, dynamics.steps, bars=len(kinds))
    panels[1, 0].yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    _legend(figure, panels[0, 0])
    grown = [100 * norm for norm in _last(dynamics.layers, lambda layer: layer.relative_norm)]
    finding = f"Updates grew to {number_text(median(grown))}% of the norm of their weight ({_range(grown)}%)"
    style.headline(figure, finding, detail(dynamics, "medians over the layers of a kind; bars: their range at the end"))
    return figure


def alignment_figure(dynamics: "Dynamics") -> "Figure":
    """Overlap of updates with the leading singular vectors of their weights, over chance: outputs left, inputs right.

    Top: the share of ‖ΔW‖² within those directions; bottom: the share of the update's strongest direction alone. Lines
    and bars as in `growth_figure`.

    Raises:
        ValueError: alignment was not recorded.
    """
    kinds = by_kind([layer for layer in dynamics.layers if layer.outputs and layer.inputs])
    if not kinds:
        msg = "the directions of the base weights were skipped when this training was recorded"
        raise ValueError(msg)
    figure = style.new_figure(height_inches=6.8)
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    medians = {}
    for column, side in enumerate(("outputs", "inputs")):
        rows: list[tuple[str, Read]] = [
            ("share of ‖ΔW‖² ÷ chance", lambda layer, side=side: _over_chance(layer, side)),
            ("strongest direction ÷ chance", lambda layer, side=side: _over_chance(layer, side, strongest=True)),
        ]
        for axes, (label, read) in zip(panels[:, column], rows, strict=True):
            _draw_kinds(axes, dynamics.steps, kinds, read)
            axes.axhline(1, color=style.SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            style.dress(axes, x="step", y=label)
            step_axis(axes, dynamics.steps, bars=len(kinds))
            log_axis(axes)
            axes.label_outer()
        panels[0, column].set_title(side, loc="left", fontsize=10, color=style.INK)
        medians[side] = number_text(median(_last(dynamics.layers, rows[0][1])))
    _legend(figure, panels[0, 0])
    over = f"{medians['outputs']}× chance (outputs), {medians['inputs']}× (inputs)"
    finding = f"Updates in the base's {dynamics.directions} leading directions: {over}"
    style.headline(figure, finding, detail(dynamics, "dashed: a random update; bars: range over layers at the end"))
    return figure


def spectra_figure(dynamics: "Dynamics", layers: Sequence[str] | None = None) -> "Figure":
    """Every singular value of some updates over the steps.

    Args:
        dynamics: with at least one nonzero update.
        layers: names of up to eight; by default the layer of each module kind that changed most.
    """
    if layers is None:
        groups = by_kind(dynamics.layers).values()
        chosen = [max(group, key=lambda layer: layer.relative_norm[-1] or 0) for group in groups][:SPECTRA]
    else:
        chosen = [layer for layer in dynamics.layers if layer.name in layers][:SPECTRA]
    columns = min(4, len(chosen))
    figure = style.new_figure(height_inches=1.3 + 2.5 * -(-len(chosen) // columns))
    panels = figure.subplots(-(-len(chosen) // columns), columns, squeeze=False, sharex=True, sharey=True)
    for place, axes in enumerate(panels.flat):
        if place >= len(chosen):
            axes.set_visible(False)
            continue
        _draw_spectrum(axes, dynamics.steps, chosen[place])
        style.dress(axes, x="step", y="singular value σᵢ", title=_title(dynamics, chosen[place]))
        step_axis(axes, dynamics.steps)
        axes.set_yscale("log")
        axes.label_outer()
        if place + columns >= len(chosen):  # the lowest panel of its column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("step", color=style.INK)
    first = [
        values[0] ** 2 / sum(value**2 for value in values)
        for layer in dynamics.layers
        if (values := layer.singular_values[-1])
    ]
    finding = f"The strongest direction has {median(first):.0%} of ‖ΔW‖² (median of {len(first)} layers)"
    which = "the layer of each kind that changed most" if layers is None else "chosen layers"
    style.headline(figure, finding, detail(dynamics, f"{which}, dark for σ₁ to light for the last"))
    return figure


def update_map(dynamics: "Dynamics") -> "Figure":
    """Heat maps of ‖ΔW‖/‖W‖ and of the effective rank at the end: layers across, module kinds down."""
    figure = style.new_figure(height_inches=min(10.0, max(3.6, 2.4 + 0.5 * len(by_kind(dynamics.layers)))))
    panels = figure.subplots(2, 1)
    shown: list[tuple[str, Read, float]] = [
        ("‖ΔW‖ / ‖W‖, %", lambda layer: layer.relative_norm, 100),
        ("effective rank of ΔW", lambda layer: layer.effective_rank, 1),
    ]
    for axes, (label, read, scale) in zip(panels, shown, strict=True):
        cells, kinds, stack = _cells(dynamics, read)
        cells *= scale
        image = paint(axes, cells, cmap="YlGnBu", limits=(0, max(1e-12, float(cells.nan_to_num().max()))))
        color_bar(figure, axes, image, label)
        layer_ticks(axes, kinds, stack)
        axes.set_xlabel("layer (–: outside the layers)" if None in stack else "layer", color=style.INK)
        axes.label_outer()
    most = max(dynamics.layers, key=lambda layer: layer.relative_norm[-1] or 0)
    finding = (
        f"{_title(dynamics, most)} changed most: by {number_text(100 * (most.relative_norm[-1] or 0))}% of its norm"
    )
    style.headline(figure, finding, detail(dynamics, f"after step {dynamics.steps[-1]}"))
    return figure


def log_axis(axes: "Axes") -> None:
    """A logarithmic axis with plain numbers, if the data spans enough for one."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.dataLim.intervaly
    if low > 0 and high > 4 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def step_axis(axes: "Axes", steps: Sequence[int], *, bars: int = 0) -> None:
    """An axis of steps: the same ticks in every panel of a figure, at whole steps, none past the last.

    Args:
        axes: drawn on.
        steps: every step of the figure, ascending.
        bars: how many bars stand right of the last step.
    """
    from matplotlib.ticker import MaxNLocator

    first, last = steps[0], steps[-1]
    ticks = MaxNLocator(integer=True, nbins=6).tick_values(first, last)
    axes.set_xticks([int(tick) for tick in ticks if first <= tick <= last])
    margin = max(1, last) * 0.03
    axes.set_xlim(first - margin, bar_position(last, bars - 1) + margin if bars else last + margin)


def bar_position(last: int, place: int) -> float:
    """Where the n-th bar stands, right of the last step."""
    return last + max(1, last) * (0.03 + 0.018 * place)


def detail(dynamics: "Dynamics", what: str) -> str:
    """The line under a headline."""
    return f"{dynamics.title}: {what}" if dynamics.title else what


def _draw_kinds(axes: "Axes", steps: Sequence[int], kinds: dict[str, list["LayerDynamics"]], read: Read) -> None:
    """The median over the layers of each kind, and at the right a bar for their range at the end."""
    for position, (kind, layers) in enumerate(kinds.items()):
        look = style.line_style(position)
        columns = [[value for value in column if value is not None] for column in zip(*map(read, layers), strict=True)]
        middle = [median(column) if column else float("nan") for column in columns]
        axes.plot(steps, middle, linewidth=1.8, label=kind, zorder=3, **look)
        if len(columns[-1]) > 1:
            place = bar_position(steps[-1], position)
            axes.plot([place] * 2, [min(columns[-1]), max(columns[-1])], color=look["color"], linewidth=3, alpha=0.55)


def _draw_spectrum(axes: "Axes", steps: Sequence[int], layer: "LayerDynamics") -> None:
    """One line per singular value, from dark for the first to light for the last."""
    from matplotlib import colormaps

    spectra = [values or [] for values in layer.singular_values]
    count = max(map(len, spectra))
    for place in range(count):
        line = [values[place] if place < len(values) else float("nan") for values in spectra]
        axes.plot(steps, line, color=colormaps["viridis"](0.9 * place / max(1, count - 1)), linewidth=1.2)


def _over_chance(layer: "LayerDynamics", side: str, *, strongest: bool = False) -> list[float | None]:
    """The share of an update, or of its strongest direction, in the base's leading subspace, over chance."""
    directions = getattr(layer, side)
    if directions is None:
        return []
    values = [phi and phi[0] for phi in directions.phi] if strongest else directions.share
    return [None if value is None else value / directions.chance for value in values]


def _cells(dynamics: "Dynamics", read: Read) -> tuple[torch.Tensor, list[str], list[int | None]]:
    """The last number of each layer as a grid, kinds down and layers across; a mean where several share a cell."""
    where = places(layer.name for layer in dynamics.layers)
    kinds = list(by_kind(dynamics.layers))
    stack = sorted({place.layer for place in where.values()}, key=lambda layer: -1 if layer is None else layer)
    in_cell: dict[tuple[int, int], list[float]] = {}
    for layer in dynamics.layers:
        place, value = where[layer.name], read(layer)[-1]
        if value is not None:
            in_cell.setdefault((kinds.index(place.kind), stack.index(place.layer)), []).append(value)
    cells = torch.full((len(kinds), len(stack)), torch.nan)
    for (row, column), values in in_cell.items():
        cells[row, column] = fmean(values)
    return cells, kinds, stack


def _last(layers: Iterable["LayerDynamics"], read: Read) -> list[float]:
    """The last number of every layer that has one."""
    return [values[-1] for layer in layers if (values := read(layer)) and values[-1] is not None]


def _range(values: Sequence[float]) -> str:
    return f"{number_text(min(values))}–{number_text(max(values))}"


def _title(dynamics: "Dynamics", layer: "LayerDynamics") -> str:
    place = places(other.name for other in dynamics.layers)[layer.name]
    return place.kind if place.layer is None else f"{place.kind}, layer {place.layer}"


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    look = {"frameon": False, "fontsize": 9, "title_fontsize": 9, "alignment": "left"}
    figure.legend(handles, labels, loc="outside right center", title="module", **look)
