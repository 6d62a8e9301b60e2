"""The figure of a sweep: held-out loss over parameters, with its spread over seeds, and the sweet spot."""

from pathlib import Path
from typing import TYPE_CHECKING

from eckart.report.figures import style
from eckart.report.words import count_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eckart.training.sweep_result import Sweep

FILE = "sweep.png"


def sweep_figure(sweep: "Sweep") -> "Figure":
    """Mean losses with standard errors over the number of parameters, one line per target; dots are single seeds.

    The band covers losses within the noise of the best: one run's standard deviation between seeds.

    Raises:
        ValueError: no setting was trained with every seed.
    """
    spot = sweep.sweet_spot
    if spot is None:
        msg = "nothing to draw: every setting failed with some seed"
        raise ValueError(msg)
    figure = style.new_figure(height_inches=5.2)
    axes = figure.subplots()
    axes.set_xscale("log")
    for position, target in enumerate(dict.fromkeys(setting.target for setting in sweep.settings)):
        look = style.line_style(position)
        of_target = sorted((each for each in sweep.settings if each.target == target), key=lambda each: each.params)
        params, means = [each.params for each in of_target], [each.mean for each in of_target]
        errors = [each.standard_error or 0 for each in of_target]
        axes.errorbar(params, means, errors, marker="o", markersize=5, capsize=3, linewidth=1.8, label=target, **look)
        for setting in of_target:
            dots = list(setting.losses.values()) if len(setting.losses) > 1 else []
            axes.plot([setting.params] * len(dots), dots, ".", color=look["color"], alpha=0.4, markersize=6)
            place = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "fontsize": 8.5}
            highest = max([*dots, setting.mean + (setting.standard_error or 0)])
            axes.annotate(f"r={setting.rank}", (setting.params, highest), color=look["color"], **place)
    if spot.noise:
        low, high = spot.best.mean, spot.best.mean + spot.noise
        axes.axhspan(low, high, color=style.GRID, zorder=0, label="within the noise of the best")
    ring = {"markersize": 17, "markerfacecolor": "none", "markeredgecolor": style.INK, "markeredgewidth": 1.6}
    axes.plot(spot.setting.params, spot.setting.mean, "o", label="sweet spot", linestyle="none", **ring)
    style.dress(axes, x="trained parameters", y="held-out loss, nats per token")
    axes.set_xticks(*_ticks(sweep))
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.15)
    figure.legend(loc="outside right center", frameon=False, fontsize=9, labelspacing=1.0)
    seeds = len(spot.setting.losses)
    sure = "one seed, undecided" if spot.probability is None else f"{'decided' if spot.decided else 'undecided'}"
    finding = f"Sweet spot: rank {spot.setting.rank} on {spot.setting.target} ({sure})"
    about = (
        "one seed: no spread is known" if seeds == 1 else f"means of {seeds} seeds ± standard error, dots single seeds"
    )
    style.headline(figure, finding, f"{sweep.about['model']}: {about}; without an adapter {sweep.base_loss:.3f}")
    return figure


def save_sweep_figure(sweep: "Sweep", folder: str | Path) -> Path | None:
    """Write `sweep.png`; nothing where every setting failed.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    if sweep.sweet_spot is None:
        return None
    return style.save(sweep_figure(sweep), Path(folder) / FILE, force=True)


def _ticks(sweep: "Sweep") -> tuple[list[int], list[str]]:
    """Doublings of the smallest number of parameters, in words."""
    params = sorted(setting.params for setting in sweep.settings)
    ticks = [params[0]]
    while ticks[-1] * 2 <= params[-1] * 1.01:
        ticks.append(ticks[-1] * 2)
    return ticks, [count_text(tick) for tick in ticks]
