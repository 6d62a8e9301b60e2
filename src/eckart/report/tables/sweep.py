"""A sweep as a table: one line per setting, the best and the sweet spot marked, with its confidence in words."""

from statistics import median
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eckart.report.words import bytes_text, count_text, number_text, seconds_text

if TYPE_CHECKING:
    from eckart.training.sweep_result import Sweep, SweepCell
    from eckart.training.sweet_spot import Setting, SweetSpot

SHOWN_FAILURES = 3
FEW_SEEDS = 3


def sweep_table(sweep: "Sweep") -> RenderableType:
    """Losses, parameters, time and memory of every setting, and the sweet spot.

    Returns:
        a rich renderable of at most 80 columns.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, header_style="bold")
    table.add_column("target", no_wrap=True, overflow="ignore")
    for heading in ("rank", "parameters", "held-out loss", "time", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    settings = {(setting.target, setting.rank): setting for setting in sweep.settings}
    for (target, rank), cells in sweep.by_setting().items():
        setting = settings.get((target, rank))
        if setting is None:
            table.add_row(target, str(rank), "–", "–", "–", "–", "failed")
            continue
        mark = _mark(setting, sweep.sweet_spot)
        table.add_row(target, str(rank), count_text(setting.params), _loss(setting), *_costs(cells), mark)
    return Group(Text("Sweep", style="bold"), table, *map(Text, _notes(sweep)))


def spot_text(spot: "SweetSpot") -> str:
    """The sweet spot and its confidence, in words."""
    setting, best = spot.setting, spot.best
    name = f"Sweet spot: rank {setting.rank} on {setting.target}, {count_text(setting.params)} parameters."
    if spot.noise is None:
        return f"{name}\nThe lowest loss of one seed; with one seed the noise is unknown: use `seeds={FEW_SEEDS}`."
    if setting is best:
        why = f"No smaller setting comes within one run's scatter ({spot.noise:.4f}) of it."
    else:
        why = (
            f"Its loss is {spot.difference:.4f} ± {spot.difference_error:.4f} above the best (rank {best.rank} on "
            f"{best.target}), within one run's scatter of {spot.noise:.4f}."
        )
    if spot.decided:
        return f"{name}\n{why}\nConfidence: at least {_floor(spot.probability)}."
    more = (
        "more than a hundred seeds"
        if spot.more_seeds is None
        else f"about {spot.more_seeds} more seed{'s' * (spot.more_seeds != 1)}"
    )
    return f"{name}\n{why}\nUndecided (probability {number_text(spot.probability)}): {more} would be needed."


def _floor(probability: float | None) -> str:
    """In percent, never rounded up to 100%."""
    return f"{min(100 * (probability or 0), 99.9):.3g}%"


def _loss(setting: "Setting") -> str:
    error = setting.standard_error
    return f"{setting.mean:.4f}" if error is None else f"{setting.mean:.4f} ± {error:.4f}"


def _costs(cells: "list[SweepCell]") -> tuple[str, str]:
    """Median time, and the highest memory."""
    seconds = [cell.seconds for cell in cells if cell.seconds is not None]
    peaks = [cell.peak_bytes for cell in cells if cell.peak_bytes is not None]
    return seconds_text(median(seconds)), bytes_text(max(peaks))


def _mark(setting: "Setting", spot: "SweetSpot | None") -> str:
    if spot is None:
        return ""
    return "sweet spot" if setting == spot.setting else "best" if setting == spot.best else ""


def _notes(sweep: "Sweep") -> list[str]:
    seeds = len({cell.seed for cell in sweep.cells})
    spread = f"mean of {seeds} seeds ± its standard error" if seeds > 1 else "one seed, so no spread"
    notes = [f"Loss in nats per token, {spread}; median training time and highest memory over the seeds."]
    if sweep.base_loss is not None:
        notes.append(f"Without an adapter: {sweep.base_loss:.4f}, on {sweep.heldout_tokens:,} held-out tokens.")
    failed = sweep.failed
    notes += [
        f"Failed: rank {cell.rank} on {cell.target}, seed {cell.seed}: {cell.error}" for cell in failed[:SHOWN_FAILURES]
    ]
    if len(failed) > SHOWN_FAILURES:
        notes.append(f"Failed: {len(failed) - SHOWN_FAILURES} more cells.")
    spot = sweep.sweet_spot
    if spot is None:
        return [*notes, "No setting was trained with every seed."]
    notes.append(spot_text(spot))
    if spot.best.rank == max(cell.rank for cell in sweep.cells):
        notes.append("The best has the highest rank that was tried: a higher one may be better.")
    return notes
