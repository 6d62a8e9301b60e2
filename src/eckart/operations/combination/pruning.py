"""Combining dense updates of one matrix: the sum of the pruned updates, or the mean of entries that agree in sign.

Each update is weighted first. PEFT's merging prunes lora_A and lora_B separately; here the update itself is pruned,
since (A₁+A₂, B₁+B₂) is not a sum of updates.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from eckart.operations.combination.mixture import Mixture

Updates = Callable[[], Iterator[tuple[float, Tensor, torch.Generator]]]


def combined_update(mixture: Mixture, updates: Updates) -> Tensor:
    """Combine several updates into one.

    Args:
        mixture: the method.
        updates: called once or twice; yields the weight of each update, the dense update, which may be modified in
            place, and a source of randomness.
    """
    density = mixture.share
    if mixture.method == "sum":
        return _total(update.mul_(weight) for weight, update, _ in updates())
    if mixture.method == "dare":
        return _total(dropped(update, density, generator).mul_(weight) for weight, update, generator in updates())

    def largest() -> Iterator[Tensor]:
        return (trimmed(update, density).mul_(weight) for weight, update, _ in updates())

    return _total(largest()) if mixture.method == "magnitude" else elected(largest)


def trimmed(update: Tensor, density: float) -> Tensor:
    """The update with all but its largest entries set to zero; entries tied with the smallest of these remain."""
    count = max(1, int(density * update.numel()))
    if count == update.numel():
        return update
    magnitudes = update.abs().flatten()
    least = magnitudes.kthvalue(update.numel() - count + 1).values
    return update.masked_fill_(magnitudes.view_as(update) < least, 0.0)


def dropped(update: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """The update with each entry retained with probability `density`, and rescaled to the same expectation."""
    if density == 1:
        return update
    return update.masked_fill_(torch.rand(update.shape, generator=generator) >= density, 0.0).div_(density)


def elected(updates: Callable[[], Iterator[Tensor]]) -> Tensor:
    """For each entry, the mean of the updates that have the sign of their sum; `updates` is called twice."""
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
