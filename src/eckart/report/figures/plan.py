"""The figure of a plan: memory of each method, stacked by part, compared with the memory available."""

from pathlib import Path
from typing import TYPE_CHECKING

from eckart.errors import OutputError
from eckart.planning.memory import CARDS_GB, PARTS, RESERVED_BYTES
from eckart.report.figures import style
from eckart.report.words import bytes_text, count_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eckart.planning.planner import PlanResult

_SHOWN_CARDS = (8, 16, 24, 48, 80, 128)


def plan_figure(plan: "PlanResult") -> "Figure":
    """One bar per method, stacked by part, and lines at the memory available.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = style.new_figure(height_inches=1.9 + 0.55 * len(plan.forecasts))
    axes = figure.subplots()
    highest = max(each.peak_bytes for each in plan.forecasts)
    size, unit = (1e9, "GB") if highest >= 1e9 else (1e6, "MB")
    labels = [each.setting.method for each in plan.forecasts]
    starts = [0.0] * len(labels)
    for position, part in enumerate(PARTS):
        widths = [each.parts[part] / size for each in plan.forecasts]
        color = style.COLORS[position]
        axes.barh(labels, widths, left=starts, height=0.62, label=part, color=color, edgecolor="white", linewidth=0.6)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for label, end in zip(labels, starts, strict=True):
        axes.annotate(
            f"{end:.3g} {unit}", (end, label), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9
        )
    limits = [(plan.memory.usable_bytes, plan.memory.text)] if plan.memory else _cards(highest)
    for nbytes, text in limits:
        axes.axvline(nbytes / size, color=style.INK, linewidth=1.2, linestyle=(0, (4, 2)))
        place = {"xytext": (3, -2), "textcoords": "offset points", "va": "top", "fontsize": 9, "color": style.INK}
        axes.annotate(text, (nbytes / size, 1), xycoords=("data", "axes fraction"), **place)
    style.dress(axes, x=f"peak memory of a training step, {unit}", y="")
    axes.set_xlim(0, 1.12 * max(highest, limits[0][0] if limits else 0) / size)
    axes.set_ylim(len(labels) - 0.4, -0.9)
    axes.tick_params(axis="y", labelsize=11, labelcolor=style.INK, length=0)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    style.headline(figure, _finding(plan), _detail(plan))
    return figure


def save_plan_figure(plan: "PlanResult", path: str | Path, *, force: bool = False) -> Path:
    """Write the figure as .png, .svg or .pdf.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file exists and `force` is not given, cannot be written, or has another extension.
    """
    path = Path(path)
    if path.suffix not in style.METADATA:
        msg = f"{path}: the name of a figure must end in .png, .svg or .pdf"
        raise OutputError(msg)
    return style.save(plan_figure(plan), path, force=force)


def _cards(highest: int) -> list[tuple[int, str]]:
    return [
        (size * 10**9 - RESERVED_BYTES, f"{size} GB")
        for size in _SHOWN_CARDS
        if size in CARDS_GB and size * 1e9 < 1.4 * highest
    ]


def _finding(plan: "PlanResult") -> str:
    """What the bars show, in a sentence."""
    if plan.memory is None:
        least = min(plan.forecasts, key=lambda each: each.peak_bytes)
        return f"{plan.model}: {least.setting.method} needs the least memory, {bytes_text(least.peak_bytes)}"
    fitting = [each.setting.method for each in plan.forecasts if plan.has_room_for(each)]
    verdict = f"{' and '.join(fitting)} fit{'s' if len(fitting) == 1 else ''}" if fitting else "nothing fits"
    return f"{plan.model}: {verdict} into {plan.memory.text}"


def _detail(plan: "PlanResult") -> str:
    setting = plan.forecasts[0].setting
    source = "simulated" if plan.forecasts[0].source == "simulation" else "estimated by a closed form"
    checkpointing = ", checkpointing" if setting.gradient_checkpointing else ""
    step = f"{setting.batch_size} × {setting.length:,} tokens per step"
    how = f"{setting.dtype}, {setting.optimizer}{checkpointing}; {source}"
    return f"{count_text(plan.model_params)} parameters, {step}, {how}"
