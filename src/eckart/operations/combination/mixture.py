"""How updates of one module are combined: the methods and their one parameter."""

from dataclasses import dataclass
from typing import Literal, get_args

from eckart.errors import OptionError

Method = Literal["sum", "ties", "dare", "magnitude", "tsv", "iso", "knots", "shared"]
IN_CORE = ("tsv", "iso", "knots", "shared")
PRUNING = ("ties", "dare", "magnitude", "knots")
DEFAULT_DENSITY = 0.5


@dataclass(frozen=True)
class Mixture:
    """A method of combining updates.

    Attributes:
        method: `sum`; `magnitude`, the sum of the largest entries of each; `dare`, the sum of random entries of each,
            rescaled (Yu et al. 2023); `ties`, the mean of the largest entries of each that have the sign of their
            weighted sum (Yadav et al. 2023); or one in the updates' common subspaces: `tsv` (Gargiulo et al. 2024),
            `iso` (Marczak et al. 2025), `knots` (Stoica et al. 2024), `shared`; see `combined_core`.
        density: share of the entries that pruning leaves; None is 0.5, or no pruning for a sum.
    """

    method: Method = "sum"
    density: float | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.method not in get_args(Method):
            faults.append(f"`method` must be one of {', '.join(get_args(Method))}, got {self.method}")
        elif self.method not in PRUNING and self.density is not None:
            faults.append(f"`density` applies to {', '.join(PRUNING)}; {_without_pruning(self.method)} prunes nothing")
        if self.density is not None and not 0 < self.density <= 1:
            faults.append(f"`density` must be a share in (0, 1], got {self.density}")
        if faults:
            msg = "cannot combine the adapters this way"
            raise OptionError.listing(msg, faults)

    @property
    def share(self) -> float:
        """The density, or its default."""
        return DEFAULT_DENSITY if self.density is None else self.density

    @property
    def is_in_core(self) -> bool:
        """Whether the method works in the updates' common subspaces, where nothing dense is formed."""
        return self.method in IN_CORE


def _without_pruning(method: str) -> str:
    return "a sum" if method == "sum" else method
