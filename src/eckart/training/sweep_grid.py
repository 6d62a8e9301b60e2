"""What a sweep varies: ranks, targets and seeds."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from eckart.errors import MismatchError, OptionError
from eckart.evaluation.outline import outline_model
from eckart.nn import LoRAConfig
from eckart.nn.targets import find_targets

SHOWN = 3  # faults of one cell


@dataclass(frozen=True)
class SweepGrid:
    """What is varied.

    Attributes:
        ranks: of the adapter.
        targets: patterns or presets, each of which may be several joined by `+`: `q_proj+v_proj`.
        seeds: of the factors' start, the order of the data and dropout; one seed is the same for every setting.
        alpha_per_rank: alpha over rank; the scale of the update is then the same at every rank.
    """

    ranks: tuple[int, ...] = (4, 8, 16)
    targets: tuple[str, ...] = ("attention", "all-linear")
    seeds: tuple[int, ...] = (0,)
    alpha_per_rank: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot be swept over, all faults at once."""
        faults = []
        for name in ("ranks", "targets", "seeds"):
            values = getattr(self, name)
            if not values:
                faults.append(f"{name}: at least one is needed")
            if repeated := sorted({str(value) for value in values if values.count(value) > 1}):
                faults.append(f"{name}: {', '.join(repeated)} is there more than once")
        faults += [
            f"ranks: {rank!r} is no whole number from 1" for rank in self.ranks if type(rank) is not int or rank < 1
        ]
        if not self.alpha_per_rank > 0:
            faults.append(f"alpha over rank must be positive, got {self.alpha_per_rank}")
        if faults:
            msg = "this cannot be swept over:"
            raise OptionError.listing(msg, faults)

    @classmethod
    def parse(
        cls, ranks: str, targets: str, *, seeds: int = 1, first_seed: int = 0, alpha_per_rank: float = 2.0
    ) -> "SweepGrid":
        """The grid of `4,8,16` and `attention,all-linear`, with so many seeds.

        Raises:
            OptionError: with all faults.
        """
        listed = [[part.strip() for part in text.split(",") if part.strip()] for text in (ranks, targets)]
        numbers = [int(part) if re.fullmatch(r"\d+", part) else part for part in listed[0]]
        if seeds < 1:
            msg = f"--seeds must be at least 1, got {seeds}"
            raise OptionError(msg)
        return cls(tuple(numbers), tuple(listed[1]), tuple(range(first_seed, first_seed + seeds)), alpha_per_rank)  # type: ignore[arg-type]

    def config(self, base: LoRAConfig, rank: int, target: str) -> LoRAConfig:
        """The adapter of a cell."""
        return replace(base, rank=rank, alpha=self.alpha_per_rank * rank, target=patterns(target))


def patterns(target: str) -> tuple[str, ...]:
    """The patterns that a target joins by `+`; a regex is one pattern whatever is in it."""
    return tuple(target.split("+")) if re.fullmatch(r"[\w.+-]+", target) else (target,)


def check_cells(model: str | Path, grid: SweepGrid, config: LoRAConfig) -> None:
    """Refuse, with all faults, adapters that do not fit the model."""
    outline, faults = outline_model(model), []
    for target in grid.targets:
        for rank in grid.ranks:
            try:
                find_targets(outline, grid.config(config, rank, target))
            except MismatchError as error:
                lines = str(error).splitlines()
                faults += [f"{target}, {line.strip(' -')}" for line in (lines[1:] or lines)[:SHOWN]]
    if faults:
        msg = "these cells cannot be trained:"
        raise MismatchError.listing(msg, list(dict.fromkeys(faults)))
