"""How dense updates of one matrix become one: sums of what pruning leaves of each, or of what agrees in sign.

Each update enters with its weight. Unlike PEFT's merging, which prunes lora_A and lora_B by themselves, the update
itself is pruned: (A₁+A₂, B₁+B₂) is no sum of updates.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from eckart.errors import OptionError

Method = Literal["sum", "ties", "dare", "magnitude"]
DEFAULT_DENSITY = 0.5
Updates = Callable[[], Iterator[tuple[float, Tensor, torch.Generator]]]


@dataclass(frozen=True)
class Mixture:
    """How updates are put together.

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
            faults.append(f"--method {self.method}: expected {', '.join(get_args(Method))}")
        elif self.method == "sum" and self.density is not None:
            faults.append("--density: a sum prunes nothing; it belongs to ties, dare and magnitude")
        if self.density is not None and not 0 < self.density <= 1:
            faults.append(f"--density {self.density}: expected a share in (0, 1]")
        if faults:
            msg = "adapters cannot be put together so"
            raise OptionError.listing(msg, faults)

    def of(self, updates: Updates) -> Tensor:
        """One update out of several.

        Args:
            updates: called once or twice; gives the weight of each, the dense update, which it may spoil, and a
                source of randomness.
        """
        density = DEFAULT_DENSITY if self.density is None else self.density
        if self.method == "sum":
            return _total(update.mul_(weight) for weight, update, _ in updates())
        if self.method == "dare":
            return _total(dropped(update, density, generator).mul_(weight) for weight, update, generator in updates())

        def largest() -> Iterator[Tensor]:
            return (trimmed(update, density).mul_(weight) for weight, update, _ in updates())

        return _total(largest()) if self.method == "magnitude" else elected(largest)


def trimmed(update: Tensor, density: float) -> Tensor:
    """The update with all but its largest entries zero; entries as large as the last that stays do stay."""
    count = max(1, int(density * update.numel()))
    if count == update.numel():
        return update
    magnitudes = update.abs().flatten()
    least = magnitudes.kthvalue(update.numel() - count + 1).values
    return update.masked_fill_(magnitudes.view_as(update) < least, 0.0)


def dropped(update: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """The update with each entry kept with probability `density`, and rescaled so that its expectation is the same."""
    if density == 1:
        return update
    return update.masked_fill_(torch.rand(update.shape, generator=generator) >= density, 0.0).div_(density)


def elected(updates: Callable[[], Iterator[Tensor]]) -> Tensor:
    """For each entry the mean of those updates that have the sign of their sum; `updates` is called twice."""
    total = _total(updates())
    positive = total >= 0
    result, count = total.zero_(), torch.zeros(total.shape, dtype=torch.int16)
    for update in updates():
        agrees = torch.where(positive, update > 0, update < 0)
        result += update.masked_fill_(~agrees, 0.0)
        count += agrees
    return result.div_(count.clamp_min_(1))


def _total(updates: Iterator[Tensor]) -> Tensor:
    result = next(updates)
    for update in updates:
        result += update
    return result
