"""The figure of a rank chosen by its gain: the gain that each measured rank keeps, with its interval."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.report.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "gain.png"


def gain_figure(gain: Mapping[str, Any]) -> "Figure":
    """Gain over rank with 95 % intervals, the gain that was asked for, and the chosen rank.

    Args:
        gain: the `gain` object of `extract.json`.
    """
    curve = gain["curve"]
    ranks, gains = [point["rank"] for point in curve], [point["gain_recovered"] for point in curve]
    figure = style.new_figure()
    axes = figure.subplots()
    known = [(point["rank"], point["gain_recovered"], point["interval"]) for point in curve if point["interval"]]
    if known:
        errors = [[y - each["lower"] for _, y, each in known], [each["upper"] - y for _, y, each in known]]
        errors = [[max(0.0, error) for error in side] for side in errors]
        places = [x for x, _, _ in known], [y for _, y, _ in known]
        axes.errorbar(*places, errors, fmt="none", ecolor=style.COLORS[0], capsize=4, label="95 % interval")
    axes.plot(ranks, gains, "o-", color=style.COLORS[0], linewidth=1.8, markersize=6, label="measured")
    axes.axhline(gain["keep"], color=style.COLORS[1], linestyle="--", linewidth=1.4, label="asked for")
    chosen = next(point for point in curve if point["rank"] == gain["rank"])
    ring = {"markersize": 16, "markerfacecolor": "none", "markeredgecolor": style.INK, "markeredgewidth": 1.6}
    label = "written" if not gain["distilled"] else "written, then distilled"
    axes.plot(gain["rank"], chosen["gain_recovered"], "o", linestyle="none", label=label, **ring)
    style.dress(axes, x="rank" if not gain["shared"] else "rank, shared at the same size", y="gain kept")
    style.rank_axis(axes, max(ranks), spacing="doubling")
    axes.set_xlim(min(ranks) * 0.9, max(ranks) * 1.1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    figure.legend(loc="outside right center", frameon=False, fontsize=9, labelspacing=1.0)
    kept = f"rank {gain['rank']} keeps {100 * chosen['gain_recovered']:.3g} % of the gain"
    finding = f"{kept[0].upper()}{kept[1:]}" if gain["reached"] and not gain["distilled"] else f"Only {kept}"
    measured = f"{len(curve)} of {gain['candidates']} ranks measured"
    what = "divergence from the fine-tune" if gain["metric"] == "kl" else "loss"
    style.headline(figure, finding, f"{what} on held-out text, {measured}; asked for: {100 * gain['keep']:g} %")
    return figure


def save_gain_figure(result: Mapping[str, Any], folder: str | Path) -> Path:
    """Write `gain.png` from the content of `extract.json`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    return style.save(gain_figure(result["gain"]), Path(folder) / FILE, force=True)
