"""The grid of a sweep: ranks, targets and seeds."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from eckart.errors import MismatchError, OptionError
from eckart.evaluation.model import outline_model
from eckart.nn import LoRAConfig

SHOWN = 3  # faults per cell


@dataclass(frozen=True)
class SweepGrid:
    """The grid.

    Attributes:
        ranks: ranks of the adapter.
        targets: patterns or presets, each of which may join several with `+`: `q_proj+v_proj`.
        seeds: seeds of the factors' initial values, the order of the data and dropout, used for every setting.
        alpha_per_rank: alpha / rank, which makes the scale of the update the same at every rank.
    """

    ranks: tuple[int, ...] = (4, 8, 16)
    targets: tuple[str, ...] = ("attention", "all-linear")
    seeds: tuple[int, ...] = (0,)
    alpha_per_rank: float = 2.0

    def __post_init__(self) -> None:
        """Refuse an invalid grid, with all faults."""
        faults = []
        for name in ("ranks", "targets", "seeds"):
            values = getattr(self, name)
            if not values:
                faults.append(f"`{name}`: at least one is needed")
            if repeated := sorted({str(value) for value in values if values.count(value) > 1}):
                faults.append(f"`{name}`: {', '.join(repeated)} occurs more than once")
        faults += [
            f"`ranks`: {rank!r} is not a whole number of at least 1"
            for rank in self.ranks
            if type(rank) is not int or rank < 1
        ]
        if not self.alpha_per_rank > 0:
            faults.append(f"alpha / rank must be positive, got {self.alpha_per_rank}")
        if faults:
            msg = "invalid sweep grid"
            raise OptionError.listing(msg, faults)

    @classmethod
    def parse(
        cls, ranks: str, targets: str, *, seeds: int = 1, first_seed: int = 0, alpha_per_rank: float = 2.0
    ) -> "SweepGrid":
        """The grid of ranks such as `4,8,16` and targets such as `attention,all-linear`, with `seeds` seeds.

        Raises:
            OptionError: the grid is invalid; all faults are listed.
        """
        listed = [[part.strip() for part in text.split(",") if part.strip()] for text in (ranks, targets)]
        numbers = [int(part) if re.fullmatch(r"\d+", part) else part for part in listed[0]]
        if seeds < 1:
            msg = f"`seeds` must be at least 1, got {seeds}"
            raise OptionError(msg)
        return cls(tuple(numbers), tuple(listed[1]), tuple(range(first_seed, first_seed + seeds)), alpha_per_rank)  # type: ignore[arg-type]

    @property
    def keys(self) -> list[tuple[int, str, int]]:
        """Rank, target and seed of every cell: all settings of a seed before the next one."""
        return [(rank, target, seed) for seed in self.seeds for target in self.targets for rank in self.ranks]

    def config(self, base: LoRAConfig, rank: int, target: str) -> LoRAConfig:
        """The adapter of a cell."""
        return replace(base, rank=rank, alpha=self.alpha_per_rank * rank, target=patterns(target))


def patterns(target: str) -> tuple[str, ...]:
    """The patterns that a target joins with `+`; a regular expression is always one pattern."""
    return tuple(target.split("+")) if re.fullmatch(r"[\w.+-]+", target) else (target,)


def check_cells(model: str | Path, grid: SweepGrid, config: LoRAConfig) -> None:
    """Refuse adapters that do not fit the model, with all faults."""
    from eckart.nn.targets import find_targets  # imports torch

    outline, faults = outline_model(model), []
    for target in grid.targets:
        for rank in grid.ranks:
            try:
                find_targets(outline, grid.config(config, rank, target))
            except MismatchError as error:
                lines = str(error).splitlines()
                faults += [f"{target}, {line.strip(' -')}" for line in (lines[1:] or lines)[:SHOWN]]
    if faults:
        msg = "some cells of the sweep cannot be trained"
        raise MismatchError.listing(msg, list(dict.fromkeys(faults)))
