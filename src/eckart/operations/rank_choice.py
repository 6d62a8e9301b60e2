"""How ranks are chosen: a number, a share of energy, a relative error, or a budget for all matrices together."""

import re
from dataclasses import dataclass
from typing import Literal

from eckart.errors import OptionError

DEFAULT_RANK = 16
MOST_RANK = 64  # that an extraction by gain considers by default
HEADER_BYTES = 512  # of a budget in bytes: the file's header, for the tensors of one layer
_BUDGET = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmg]?b|[kmg]?)", re.IGNORECASE)
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@dataclass(frozen=True)
class Budget:
    """A limit on the size of an adapter, in bytes of its file or in parameters."""

    amount: int
    in_bytes: bool

    @classmethod
    def parse(cls, budget: "str | int | Budget") -> "Budget":
        """A budget as users write it: `20MB` is bytes, `5M` or an int is parameters; k, M and G are powers of 1000.

        Raises:
            OptionError: the value is not a budget.
        """
        if isinstance(budget, Budget):
            return budget
        match = _BUDGET.fullmatch(str(budget).strip())
        if match is None:
            msg = f"`budget` must be bytes such as 20MB or parameters such as 5M, got {budget}"
            raise OptionError(msg)
        unit = match["unit"].lower()
        amount = int(float(match["number"]) * _SCALES[unit.removesuffix("b")])
        return cls(amount, in_bytes=unit.endswith("b"))

    def text(self, amount: int | None = None) -> str:
        """An amount in this budget's unit, the budget's own by default: `20 MB`, `5,000 parameters`."""
        number = self.amount if amount is None else amount
        if not self.in_bytes:
            return f"{number:,} parameters"
        prefix, scale = next(
            ((prefix, scale) for prefix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if number >= scale), ("", 1)
        )
        return f"{number / scale:.4g} {prefix}B" if prefix else f"{number} bytes"


@dataclass(frozen=True)
class RankChoice:
    """Exactly one way to choose ranks.

    Attributes:
        rank: the rank of every matrix; where it is too high for one, the highest possible.
        energy: the smallest rank of each matrix that preserves this share of ‖ΔW‖_F².
        error: the smallest rank of each matrix whose relative Frobenius error is strictly below this.
        budget: a size that all matrices share so that the most energy is preserved.
        noise: the directions of each matrix that stand above the rounding of its stored data type.
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None
    budget: Budget | None = None
    noise: Literal[True] | None = None

    @classmethod
    def given(
        cls,
        *,
        rank: "int | str | RankChoice | None" = None,
        energy: float | None = None,
        error: float | None = None,
        budget: str | int | Budget | None = None,
        knows_noise: bool = False,
    ) -> "RankChoice | None":
        """The rank choice from the arguments of an operation; None if all of them are None.

        Args:
            rank: as the user gave it.
            energy: the same.
            error: the same.
            budget: the same.
            knows_noise: whether the operation takes `noise` as a rank.

        Raises:
            OptionError: more than one is given, or a value is out of range.
        """
        if (rank, energy, error, budget) == (None, None, None, None):
            return None
        if isinstance(rank, RankChoice):
            if (energy, error, budget) != (None, None, None):
                msg = "`rank` is a RankChoice, so `energy`, `error` and `budget` must not be given"
                raise OptionError(msg)
            return rank
        if isinstance(rank, str):
            if rank != "noise" or not knows_noise:
                msg = f"`rank` must be a number{' or noise' if knows_noise else ''}, got {rank!r}"
                raise OptionError(msg)
            return cls(None, energy, error, Budget.parse(budget) if budget is not None else None, noise=True)
        return cls(rank, energy, error, Budget.parse(budget) if budget is not None else None)

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            names = ", ".join("`rank`" if name == "noise" else f"`{name}`" for name in given) or "none"
            msg = f"choose ranks in exactly one way: by `rank`, `energy`, `error` or `budget`; got {names}"
            raise OptionError(msg)
        if self.rank is not None and self.rank < 1:
            msg = f"`rank` must be at least 1, got {self.rank}"
            raise OptionError(msg)
        for name in ("energy", "error"):
            share = given.get(name)
            if share is not None and not 0 < share <= 1:
                msg = f"`{name}` must be a share in (0, 1], got {share}"
                raise OptionError(msg)
        if self.budget is not None and self.budget.amount < 1:
            msg = f"`budget` must be at least 1, got {self.budget.amount}"
            raise OptionError(msg)
