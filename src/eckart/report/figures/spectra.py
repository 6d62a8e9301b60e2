"""Figures of an analysis: spectrum, cumulative energy, error against rank; and all of them as files.

Each function returns a matplotlib `Figure` that was drawn without pyplot, so that it works on a server, in a
thread and in a notebook, and leaves no global state.
"""

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

from eckart.report import findings
from eckart.report.figures import style
from eckart.report.figures.curves import curve, groups, middle
from eckart.report.figures.rank_map import rank_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eckart.operations import Analysis, MatrixAnalysis

LOWEST_SIGMA = 1e-6  # of σ₁: values below are rounding errors of the decomposition, not of the weights
SHOWN = 0.98  # of each line; its last values drop by orders of magnitude and would flatten the rest
MARKED_ENERGIES = (0.9, 0.95, 0.99)
MARKED_ERRORS = (0.1, 0.01)
NOISE_EDGES = {"additive": "noise edge", "dead-zone": "noise edge", "bulk": "edge of the random bulk"}
MOST_BANDS = 3  # more overlap into mud


def spectrum_figure(analysis: "Analysis") -> "Figure":
    """Singular values over their index, linear and logarithmic, with the noise edge where it was estimated.

    Args:
        analysis: of weights, a difference or an adapter, with at least one nonzero matrix.

    Returns:
        two panels of σᵢ/σ₁; each line is the median over the matrices of one module kind, the band (drawn where
        there are few lines) covers the middle 80 % of them; a circle marks the noise edge.
    """
    drawn = groups(analysis)
    figure = style.new_figure()
    linear, logarithmic = figure.subplots(1, 2)
    lowest = 1.0
    few = len(drawn) <= MOST_BANDS
    for position, (label, matrices) in enumerate(drawn.items()):
        line, band = curve(matrices, lambda spectrum: spectrum.singular_values / spectrum.singular_values[0])
        lowest = min(lowest, float(line.quantile(1 - SHOWN)))
        stable = middle([matrix.spectrum.stable_rank for matrix in matrices])
        for axes in (linear, logarithmic):
            _draw(axes, line, position, label=f"{label}  ·  {stable:.3g}", band=band if few else None)
            _mark_noise_edge(axes, line, matrices, position)
    for axes, title in ((linear, "linear"), (logarithmic, "logarithmic")):
        style.dress(axes, x="index i", y="singular value, σᵢ / σ₁", title=title)
        style.rank_axis(axes, _highest_rank(drawn), spacing=_spacing(analysis))
    linear.set_ylim(0, 1.02)
    logarithmic.set_yscale("log")
    logarithmic.set_ylim(max(LOWEST_SIGMA, lowest / 2), 1.3)
    edge = next((matrix.noise.regime for matrix in analysis.matrices if matrix.noise), None)
    _legend(figure, linear, "stable rank", circle=edge and f"{NOISE_EDGES[edge]} (median)")
    style.headline(figure, findings.spectrum_finding(analysis), _detail(analysis, drawn))
    return figure


def energy_figure(analysis: "Analysis") -> "Figure":
    """Share of ‖W‖² in the leading r singular values, with 90, 95 and 99 % marked."""
    drawn = groups(analysis)
    figure = style.new_figure()
    axes = figure.subplots()
    few = len(drawn) <= MOST_BANDS
    for position, (label, matrices) in enumerate(drawn.items()):
        line, band = curve(matrices, lambda spectrum: spectrum.cumulative_energy())
        needed = middle([matrix.spectrum.rank_for_energy(0.9) for matrix in matrices])
        _draw(axes, line, position, label=f"{label}  ·  {needed:.0f}", band=band if few else None)
        _dots(axes, line, [(energy, line >= energy) for energy in MARKED_ENERGIES], position)
    style.dress(axes, x="rank r", y=f"share of the energy, Σᵢ≤ᵣ σᵢ² / ‖{_symbol(analysis)}‖²")
    style.rank_axis(axes, _highest_rank(drawn), spacing=_spacing(analysis))
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    _thresholds(axes, MARKED_ENERGIES)
    _legend(figure, axes, "rank for 90%")
    style.headline(figure, findings.energy_finding(analysis), _detail(analysis, drawn))
    return figure


def error_figure(analysis: "Analysis") -> "Figure":
    """Relative Frobenius error of the best rank-r approximation over r, with 10 and 1 % marked."""
    drawn = groups(analysis)
    figure = style.new_figure()
    axes = figure.subplots()
    lowest = MARKED_ERRORS[-1] / 3
    hidden = lowest / 10  # where a line that reaches zero leaves the logarithmic axis
    few = len(drawn) <= MOST_BANDS
    for position, (label, matrices) in enumerate(drawn.items()):
        line, band = curve(matrices, lambda spectrum: spectrum.errors()[1:].clamp_min(hidden))
        needed = middle([matrix.spectrum.rank_for_error(0.1) for matrix in matrices])
        _draw(axes, line, position, label=f"{label}  ·  {needed:.0f}", band=band if few else None)
        _dots(axes, line, [(error, line < error) for error in MARKED_ERRORS], position)
    style.dress(axes, x="rank r", y="relative error, ‖{0} − {0}ᵣ‖ / ‖{0}‖".format(_symbol(analysis)))
    style.rank_axis(axes, _highest_rank(drawn), spacing=_spacing(analysis))
    axes.set_yscale("log")
    axes.set_ylim(lowest, 1.1)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.3g}")
    _thresholds(axes, MARKED_ERRORS)
    _legend(figure, axes, "rank for < 10%")
    style.headline(figure, findings.error_finding(analysis), _detail(analysis, drawn))
    return figure


def save_figures(analysis: "Analysis", folder: str | Path) -> list[Path]:
    """Draw every figure and write it as PNG.

    Args:
        analysis: with at least one nonzero matrix; otherwise nothing is written.
        folder: created if it does not exist.

    Returns:
        the paths: `spectrum.png`, `energy.png`, `error.png`, `rank_map.png`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    if not findings.measured(analysis):
        return []
    drawings = {
        "spectrum": spectrum_figure,
        "energy": energy_figure,
        "error": error_figure,
        "rank_map": rank_map,
    }
    return style.save_all(analysis, drawings, folder)


def _draw(
    axes: "Axes",
    line: torch.Tensor,
    position: int,
    *,
    label: str,
    band: tuple[torch.Tensor, torch.Tensor] | None,
) -> None:
    """One median line over the ranks from 1, with or without its band."""
    ranks = torch.arange(1, 1 + len(line)).numpy()
    look = style.line_style(position)
    axes.plot(ranks, line.numpy(), linewidth=1.8, label=label, zorder=3, **look)
    if band is not None:
        axes.fill_between(ranks, *band, color=look["color"], alpha=0.13, linewidth=0, zorder=2)


def _dots(axes: "Axes", line: torch.Tensor, marks: list[tuple[float, torch.Tensor]], position: int) -> None:
    """A dot where the line first meets each mark."""
    color = style.line_style(position)["color"]
    for _, met in marks:
        if bool(met.any()):
            first = int(met.to(torch.int8).argmax())
            axes.plot(first + 1, float(line[first]), "o", markersize=4.5, color=color, zorder=4)


def _mark_noise_edge(axes: "Axes", line: torch.Tensor, matrices: list["MatrixAnalysis"], position: int) -> None:
    """A circle on the line at the last singular value above the noise (its median rank over the group)."""
    ranks = [matrix.noise.signal_rank for matrix in matrices if matrix.noise and matrix.noise.signal_rank]
    if ranks:
        rank = min(round(median(ranks)), len(line))
        color = style.line_style(position)["color"]
        look = {"markersize": 7, "markerfacecolor": "white", "markeredgecolor": color}
        axes.plot(rank, float(line[rank - 1]), "o", zorder=5, **look)


def _thresholds(axes: "Axes", levels: tuple[float, ...]) -> None:
    """Thin horizontal lines, each named right of the axes, where no line passes."""
    for level in levels:
        axes.axhline(level, color=style.SOFT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{level:.0%}",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=style.SOFT,
        )


def _legend(figure: "Figure", axes: "Axes", number: str, *, circle: str | None = None) -> None:
    """Legend next to the axes: every line with its number, and what a circle marks."""
    if circle:
        look = {"markersize": 7, "markerfacecolor": "white", "markeredgecolor": style.SOFT}
        axes.plot([], [], "o", label=circle, **look)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside right center",
        frameon=False,
        fontsize=9,
        title=f"module  ·  {number}",
        title_fontsize=9,
        alignment="left",
    )


def _highest_rank(drawn: dict[str, list["MatrixAnalysis"]]) -> int:
    """The highest rank that a drawn spectrum reaches."""
    return max(len(matrix.spectrum.singular_values) for matrices in drawn.values() for matrix in matrices)


def _spacing(analysis: "Analysis") -> style.Spacing:
    """Linear for weights, whose spectra fall slowly; doublings for updates and adapters, whose spectra fall fast."""
    return "linear" if analysis.kind == "weights" else "doubling"


def _symbol(analysis: "Analysis") -> str:
    """The matrix in formulas."""
    return "W" if analysis.kind == "weights" else "ΔW"


def _detail(analysis: "Analysis", drawn: dict[str, list["MatrixAnalysis"]]) -> str:
    """The line under a headline: what was analyzed, and what a line and a band show."""
    grouped = any(len(matrices) > 1 for matrices in drawn.values())
    lines = "; each line the median over its matrices" if grouped else ""
    bands = ", band 10th to 90th percentile" if grouped and len(drawn) <= MOST_BANDS else ""
    return f"{findings.name(analysis)}, {findings.of_medians(analysis)}{lines}{bands}"
