"""Figures of a training: its loss, and all of its figures as files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from eckart.report.figures import style
from eckart.report.figures.updates import (
    alignment_figure,
    detail,
    growth_figure,
    log_axis,
    spectra_figure,
    step_axis,
    update_map,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eckart.training import TrainResult
    from eckart.training.trajectory import Dynamics

NEIGHBORS = 1 / 16  # of the steps, on each side, over which the smoothed loss is a mean


def loss_figure(dynamics: "Dynamics") -> "Figure":
    """Training loss, its moving mean and the held-out losses; below, learning rate and gradient norm."""
    steps, losses = dynamics.logged("loss")
    held_out = dict(zip(*dynamics.logged("heldout_loss"), strict=True))
    figure = style.new_figure(height_inches=6.2)
    panels = figure.subplot_mosaic([["loss", "loss"], ["rate", "gradient"]], height_ratios=[2.4, 1])
    axes = panels["loss"]
    if losses:
        half = neighbors(len(losses))
        smooth = [fmean(losses[max(0, place - half) : place + half + 1]) for place in range(len(losses))]
        color = style.COLORS[0]
        axes.plot(steps, losses, ".", color=color, alpha=0.35, markersize=5, label="training, each step")
        axes.plot(steps, smooth, color=color, linewidth=2, label=f"training, mean of {2 * half + 1} steps")
    if held_out:
        color = style.COLORS[1]
        look = {"linestyle": "none", "marker": "D", "markersize": 6}
        axes.plot(list(held_out), list(held_out.values()), color=color, label="held-out", **look)
        for step, loss in held_out.items():
            last = 0 < step == max(held_out)
            place = {"xytext": (-8 if last else 8, 8), "ha": "right" if last else "left", "textcoords": "offset points"}
            axes.annotate(f"{loss:.3f}", (step, loss), color=color, fontsize=9, fontweight="bold", **place)
    axes.margins(y=0.12)
    style.dress(axes, x="step", y="loss, nats per token")
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    for name, quantity in (("rate", "learning_rate"), ("gradient", "gradient_norm")):
        panels[name].plot(*dynamics.logged(quantity), color=style.INK, linewidth=1.2)
        style.dress(panels[name], x="step", y=quantity.replace("_", " "))
    log_axis(panels["gradient"])
    for panel in panels.values():
        step_axis(panel, sorted(dynamics.log))
    style.headline(figure, _loss_finding(losses, held_out), detail(dynamics, "loss of each step, before its update"))
    return figure


def neighbors(count: int) -> int:
    """How many losses on each side go into the smoothed loss, of `count` in all."""
    return max(1, round(NEIGHBORS * count))


def save_dynamics(dynamics: "Dynamics", folder: str | Path) -> list[Path]:
    """Draw what was recorded and write it as PNG.

    Returns:
        the paths: `loss.png`, `growth.png`, `spectra.png`, `update_map.png`, `alignment.png`, as far as recorded.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    drawings: dict[str, Callable[[Dynamics], Figure]] = {}
    if dynamics.log:
        drawings["loss"] = loss_figure
    if dynamics.steps and any(layer.norm[-1] for layer in dynamics.layers):
        drawings |= {"growth": growth_figure, "spectra": spectra_figure, "update_map": update_map}
        if dynamics.directions:
            drawings["alignment"] = alignment_figure
    return style.save_all(dynamics, drawings, folder)


def save_training_figures(result: "TrainResult", folder: str | Path) -> list[Path]:
    """The figures of a training's dynamics, if they were recorded; see `save_dynamics`."""
    return [] if result.dynamics is None else save_dynamics(result.dynamics, folder)


def _loss_finding(losses: Sequence[float], held_out: dict[int, float]) -> str:
    if len(held_out) > 1:
        first, last = held_out[min(held_out)], held_out[max(held_out)]
        return f"Held-out loss {'fell' if last < first else 'rose'} from {first:.3f} to {last:.3f}"
    if not losses:
        return "No loss was recorded"
    tenth = max(1, len(losses) // 10)
    return f"Training loss went from {fmean(losses[:tenth]):.3f} to {fmean(losses[-tenth:]):.3f}"
