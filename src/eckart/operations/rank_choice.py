"""How a rank is chosen: a number, a share of energy, a relative error, or a budget for all matrices together."""

import re
from dataclasses import dataclass

from eckart.errors import OptionError

DEFAULT_RANK = 16
HEADER_BYTES = 512  # of a budget in bytes: the file's header, for the tensors of one layer
_BUDGET = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmg]?b|[kmg]?)", re.IGNORECASE)
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@dataclass(frozen=True)
class Budget:
    """A limit for a whole adapter, in bytes of its file or in parameters."""

    amount: int
    in_bytes: bool

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """A budget as typed: `20MB` bytes, `5M` parameters; k, M and G are powers of 1000.

        Raises:
            OptionError: the text is not a budget.
        """
        match = _BUDGET.fullmatch(text.strip())
        if match is None:
            msg = f"--budget {text}: expected bytes such as 20MB, or parameters such as 5M"
            raise OptionError(msg)
        unit = match["unit"].lower()
        amount = int(float(match["number"]) * _SCALES[unit.removesuffix("b")])
        return cls(amount, in_bytes=unit.endswith("b"))


@dataclass(frozen=True)
class RankChoice:
    """Exactly one way to choose ranks.

    Attributes:
        rank: the rank of every matrix; a smaller matrix takes what it can hold.
        energy: smallest rank of each matrix that keeps this share of ‖ΔW‖_F².
        error: smallest rank of each matrix with a relative Frobenius error strictly below.
        budget: shared between all matrices so that most energy is kept.
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None
    budget: Budget | None = None

    @classmethod
    def given(
        cls,
        *,
        rank: int | None = None,
        energy: float | None = None,
        error: float | None = None,
        budget: str | None = None,
    ) -> "RankChoice":
        """The choice that a user typed; `DEFAULT_RANK` where nothing was.

        Raises:
            OptionError: more than one way was given, or a value is out of range.
        """
        if (rank, energy, error, budget) == (None, None, None, None):
            rank = DEFAULT_RANK
        return cls(rank, energy, error, Budget.parse(budget) if budget is not None else None)

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            named = ", ".join(f"--{name}" for name in given) or "none"
            msg = f"choose ranks in exactly one way of --rank, --energy, --error, --budget; got {named}"
            raise OptionError(msg)
        if self.rank is not None and self.rank < 1:
            msg = f"--rank {self.rank}: a rank is at least 1"
            raise OptionError(msg)
        for name in ("energy", "error"):
            share = given.get(name)
            if share is not None and not 0 < share <= 1:
                msg = f"--{name} {share}: expected a share in (0, 1]"
                raise OptionError(msg)
        if self.budget is not None and self.budget.amount < 1:
            msg = "--budget 0: nothing fits in that"
            raise OptionError(msg)
