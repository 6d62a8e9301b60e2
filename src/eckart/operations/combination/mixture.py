"""How updates of one module are combined: the methods and their one parameter."""

from dataclasses import dataclass
from typing import Literal, get_args

from eckart.errors import OptionError

Method = Literal["sum", "ties", "dare", "magnitude"]
DEFAULT_DENSITY = 0.5


@dataclass(frozen=True)
class Mixture:
    """A method of combining updates.

    Attributes:
        method: `sum`; `magnitude`, the sum of the largest entries of each; `dare`, the sum of random entries of each,
            rescaled (Yu et al. 2023); `ties`, the mean of the largest entries of each that have the sign of their
            weighted sum (Yadav et al. 2023).
        density: share of the entries that pruning leaves; None is 0.5, or no pruning for a sum.
    """

    method: Method = "sum"
    density: float | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.method not in get_args(Method):
            faults.append(f"`method` must be one of {', '.join(get_args(Method))}, got {self.method}")
        elif self.method == "sum" and self.density is not None:
            faults.append("`density` applies to ties, dare and magnitude; a sum prunes nothing")
        if self.density is not None and not 0 < self.density <= 1:
            faults.append(f"`density` must be a share in (0, 1], got {self.density}")
        if faults:
            msg = "cannot combine the adapters this way"
            raise OptionError.listing(msg, faults)
