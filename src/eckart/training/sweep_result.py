"""The result of a sweep, as a value and as `sweep.json`."""

from dataclasses import asdict, dataclass, field
from typing import Any

from eckart.result import Result
from eckart.training.sweet_spot import Setting, SweetSpot, find_sweet_spot

FORMAT = "eckart-sweep/1"
RESULT_FILE = "sweep.json"


@dataclass(frozen=True)
class SweepCell:
    """One training.

    Attributes:
        rank, target, seed: what was varied.
        loss: held-out loss in nats per token; None if the training failed.
        params: number of trained parameters.
        seconds: time of its steps.
        peak_bytes: peak memory of its process, or its GPU.
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


@dataclass(frozen=True, repr=False)
class Sweep(Result):
    """The result of a sweep.

    Attributes:
        about: the settings that all cells share.
        cells: the cells, ordered by seed, then target, then rank.
        base_loss: held-out loss of the model without an adapter, in nats per token; None if every cell failed.
        heldout_tokens: number of tokens that the losses are means over.
        sweet_spot: the sweet spot among the settings that were trained with every seed; None if there are none.
        seconds: time since the sweep was last resumed.
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
        """Every target and rank with the losses of all seeds, if none failed."""
        complete = []
        for (target, rank), cells in self.by_setting().items():
            losses = {cell.seed: cell.loss for cell in cells if cell.loss is not None}
            if len(losses) == len(cells) and cells[0].params is not None:
                complete.append(Setting(rank, target, cells[0].params, losses))
        return complete

    @property
    def failed(self) -> list[SweepCell]:
        """The cells without a loss."""
        return [cell for cell in self.cells if cell.loss is None]

    def rows(self) -> list[dict[str, Any]]:
        """The cells."""
        return [asdict(cell) for cell in self.cells]

    def to_json(self) -> dict[str, Any]:
        """The content of `sweep.json`."""
        return {
            "format": FORMAT,
            "about": self.about,
            "base_loss": self.base_loss,
            "heldout_tokens": self.heldout_tokens,
            "cells": self.rows(),
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
