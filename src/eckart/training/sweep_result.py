"""What a sweep found, as a value and as `sweep.json`."""

from dataclasses import asdict, dataclass, field
from typing import Any

from eckart.training.sweet_spot import Setting, SweetSpot, find_sweet_spot

FORMAT = "eckart-sweep/1"
RESULT_FILE = "sweep.json"


@dataclass(frozen=True)
class SweepCell:
    """One training.

    Attributes:
        rank, target, seed: what it was of.
        loss: held out, in nats per token; None where it failed.
        params: trained.
        seconds: of its steps.
        peak_bytes: the most memory that its process, or its GPU, held.
        error: why it failed.
    """

    rank: int
    target: str
    seed: int
    loss: float | None
    params: int | None
    seconds: float | None
    peak_bytes: int | None
    error: str | None = None


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        about: what was the same in all cells.
        cells: seeds first, then targets, then ranks.
        base_loss: of the model without an adapter, in nats per held-out token; None if every cell failed.
        heldout_tokens: that the losses are means over.
        sweet_spot: of the settings that were trained with every seed; None if there is none.
        seconds: since the sweep was last taken up.
    """

    about: dict[str, Any]
    cells: list[SweepCell]
    base_loss: float | None
    heldout_tokens: int | None
    seconds: float
    sweet_spot: SweetSpot | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sweet_spot", find_sweet_spot(self.settings))

    def by_setting(self) -> dict[tuple[str, int], list[SweepCell]]:
        """The cells of each target and rank."""
        groups: dict[tuple[str, int], list[SweepCell]] = {}
        for cell in self.cells:
            groups.setdefault((cell.target, cell.rank), []).append(cell)
        return groups

    @property
    def settings(self) -> list[Setting]:
        """Target and rank with the losses of all seeds, where none failed."""
        found = []
        for (target, rank), cells in self.by_setting().items():
            losses = {cell.seed: cell.loss for cell in cells if cell.loss is not None}
            if len(losses) == len(cells) and cells[0].params is not None:
                found.append(Setting(rank, target, cells[0].params, losses))
        return found

    @property
    def failed(self) -> list[SweepCell]:
        """The cells that have no loss."""
        return [cell for cell in self.cells if cell.loss is None]

    def to_json(self) -> dict[str, Any]:
        """The content of `sweep.json`."""
        return {
            "format": FORMAT,
            "about": self.about,
            "base_loss": self.base_loss,
            "heldout_tokens": self.heldout_tokens,
            "cells": [asdict(cell) for cell in self.cells],
            "settings": [
                {
                    "rank": setting.rank,
                    "target": setting.target,
                    "params": setting.params,
                    "loss": setting.mean,
                    "standard_error": setting.standard_error,
                    "lowest": min(setting.losses.values()),
                    "highest": max(setting.losses.values()),
                    "seeds": len(setting.losses),
                }
                for setting in self.settings
            ],
            "sweet_spot": None if self.sweet_spot is None else self.sweet_spot.to_json(),
            "seconds": self.seconds,
        }
