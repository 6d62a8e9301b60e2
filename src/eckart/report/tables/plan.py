"""A plan as tables for a terminal of 80 columns."""

import re
import textwrap
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eckart.planning.memory import PARTS, RESERVED_BYTES, smallest_card
from eckart.report.words import bytes_text, count_text, seconds_text

if TYPE_CHECKING:
    from eckart.planning.advice import Advice
    from eckart.planning.forecast import Forecast
    from eckart.planning.measure import PredictionCheck
    from eckart.planning.planner import PlanResult

_HEADINGS = {
    "weights": "weights",
    "adapters": "adap-\nters",
    "gradients": "gradi-\nents",
    "optimizer": "opti-\nmizer",
    "activations": "activa-\ntions",
    "other": "other",
}
_RANKS = (4, 8, 16, 32, 64, 128, 256)
_WIDTH = 80


def plan_table(plan: "PlanResult", check: "PredictionCheck | None" = None) -> RenderableType:
    """Peak memory by part and method, what fits, what to train with and what the next step up costs.

    Returns:
        a rich renderable of at most 80 columns.
    """
    setting = plan.forecasts[0].setting
    about = f"{plan.model}: {count_text(plan.model_params)} parameters"
    checkpointing = ", checkpointing" if setting.gradient_checkpointing else ""
    where = f" on each of {setting.gpus} GPUs ({setting.sharding})" if setting.gpus > 1 else ""
    step = f"{setting.batch_size} × {setting.length:,} tokens per step{where}, {setting.dtype}, {setting.optimizer}"
    parts: list[RenderableType] = [Text(about, style="bold"), Text(f"{step}, {setting.attention}{checkpointing}")]
    parts.append(_methods(plan))
    parts += _advice(plan)
    if plan.counts:
        parts += [Text("Parameters of an adapter, by rank", style="bold"), _counts(plan)]
    if check is not None:
        parts.append(Text(_check(check)))
    return Group(*parts, *map(Text, _notes(plan)))


def _methods(plan: "PlanResult") -> Table:
    """One row per method, in one unit."""
    forecasts = plan.forecasts
    unit, size = ("GB", 1e9) if max(each.peak_bytes for each in forecasts) >= 1e9 else ("MB", 1e6)
    table = _table(f"{unit}", f"peak\n{unit}", *(_HEADINGS[part] for part in PARTS))
    table.columns[0].header = "method"
    table.add_column(f"fits\n{plan.memory.text}" if plan.memory else "fits\nin", justify="right", no_wrap=True)
    for each in forecasts:
        numbers = [each.peak_bytes, *(each.parts[part] for part in PARTS)]
        cells = [_size(number / size) for number in numbers]
        table.add_row(each.setting.method, *cells, _verdict(plan, each), style=None)
    return table


def _verdict(plan: "PlanResult", forecast: "Forecast") -> str:
    if plan.memory is None:
        card = smallest_card(forecast.peak_bytes)
        return f"{card} GB" if card else "several"
    return "yes" if plan.has_room_for(forecast) else "no"


def _advice(plan: "PlanResult") -> list[RenderableType]:
    """What to train with, why, and what more memory would buy."""
    advice = plan.advice
    if advice is None:
        assert plan.memory is not None
        given = plan.chosen.setting.method if len(plan.forecasts) == 1 else ""
        least = "" if given else f"; the leanest setting takes {bytes_text(plan.peak_bytes)}"
        nothing = f"No setting of {given}" if given else "Nothing"
        return [Text(f"{nothing} fits into {plan.memory.text}{least}.", style="bold"), *_several(plan)]
    room = f" for {plan.memory.text}" if plan.memory else ""
    parts: list[RenderableType] = []
    if plan.fits is False and plan.memory is not None:
        parts.append(Text(f"The requested setting does not fit into {plan.memory.text}; the advised one does."))
        parts += _several(plan)
    parts.append(Text(f"Advice{room}: peak {bytes_text(advice.forecast.peak_bytes)}", style="bold"))
    table = _table("", "", "why", "from", left=True)
    for reason in advice.reasons:
        table.add_row(reason.what, reason.value, reason.why, reason.source)
    parts.append(table)
    if advice.next_steps:
        steps = _table("one step up", "peak", "more")
        if plan.memory:
            steps.add_column("fits", justify="right")
        for what, step in advice.next_steps.items():
            more = _more(step.peak_bytes - advice.forecast.peak_bytes)
            fits = ["yes" if plan.has_room_for(step) else "no"] if plan.memory else []
            steps.add_row(what, bytes_text(step.peak_bytes), more, *fits)
        parts.append(steps)
    command = _command(plan, advice)
    return [*parts, *([Text(command), Text("")] if command else [])]


def _several(plan: "PlanResult") -> list[RenderableType]:
    """How many GPUs would do."""
    if plan.several is None or plan.memory is None:
        return []
    gpus, peak = plan.several.setting.gpus, bytes_text(plan.several.peak_bytes)
    return [Text(f"{gpus} GPUs of {plan.memory.text} hold it with FSDP: peak {peak} on each.")]


def _command(plan: "PlanResult", advice: "Advice") -> str:
    """The command for the advised training, in lines that a shell joins."""
    command = advice.command(plan.source or "MODEL")
    # An option and its value stay together.
    joined = re.sub(r"(?<= )(--[\w-]+) (?=[^-])", "\\1\0", command)
    lines = textwrap.wrap(joined, _WIDTH - 8, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(lines).replace("\0", " ")


def _counts(plan: "PlanResult") -> Table:
    table = _table("target", *map(str, _RANKS))
    for target, params in plan.counts.items():
        table.add_row(target, *(count_text(rank * params) for rank in _RANKS))
    return table


def _notes(plan: "PlanResult") -> list[str]:
    notes = list(plan.notes)
    shallow = next((each.layers for each in plan.forecasts if each.layers), None)
    if shallow:
        is_full = plan.chosen.layers is None and plan.chosen.source == "simulation"
        confirmed = ", and the advised setting on all layers" if is_full else ""
        notes.append(f"Extrapolated from simulations of {shallow[0]} and {shallow[1]} equal layers{confirmed}.")
    if plan.chosen.where:
        peak = f"of {plan.chosen.setting.method}: {plan.chosen.where}"
        notes.append(f"The columns show memory at the moment of peak use; {peak}.")
    free = f"{RESERVED_BYTES / 1e9:g} GB"
    notes.append(f"{free} of a GPU are reserved for its CUDA context and gaps between tensors. GB are 10⁹ bytes.")
    return notes


def _check(check: "PredictionCheck") -> str:
    return (
        f"A real step of {check.method} on this machine's CPU: predicted {bytes_text(check.predicted_bytes)}, "
        f"measured {bytes_text(check.measured_bytes)} ({check.error:+.1%}), {seconds_text(check.seconds)}."
    )


def _table(*headings: str, left: bool = False) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, header_style="bold")
    table.show_header = any(headings)
    for position, heading in enumerate(headings):
        wraps = left and heading == "why"
        table.add_column(heading, justify="left" if left or not position else "right", no_wrap=not wraps)
    return table


def _size(number: float) -> str:
    """A number with three digits; a dash for zero."""
    if number == 0:
        return "–"
    return f"{number:.{0 if number >= 100 else 1 if number >= 10 else 2}f}"


def _more(nbytes: int) -> str:
    return f"{'+' if nbytes >= 0 else '−'}{bytes_text(abs(nbytes))}"
