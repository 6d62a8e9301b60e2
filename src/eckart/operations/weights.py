"""The weight of each adapter in a sum of several."""

import math
from collections.abc import Sequence

from eckart.errors import OptionError


def parse_weights(text: str | None) -> list[float] | None:
    """Weights written as `0.5,-1`; None stays None.

    Raises:
        OptionError: the text is not a list of numbers.
    """
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        msg = f"`weights` must be one number per adapter, such as 0.5,0.5, got {text}"
        raise OptionError(msg) from None


def checked_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """One finite weight for each of `count` adapters; 1 for all if None is given.

    Raises:
        OptionError: the number of weights is wrong, or one is NaN or infinite.
    """
    if weights is None:
        return (1.0,) * count
    faults = [f"weight {number} is {weight}" for number, weight in enumerate(weights, 1) if not math.isfinite(weight)]
    if len(weights) != count:
        faults.append(f"{len(weights)} weights for {count} adapters")
    if faults:
        msg = "`weights` must be one finite number per adapter"
        raise OptionError.listing(msg, faults)
    return tuple(float(weight) for weight in weights)
