"""The factor of each adapter where several are put together."""

import math
from collections.abc import Sequence

from eckart.errors import OptionError


def parse_weights(text: str | None) -> list[float] | None:
    """Weights as typed: `0.5,-1`; None where nothing was.

    Raises:
        OptionError: the text is no list of numbers.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        msg = f"--weights {text}: expected one number for each adapter, such as 0.5,0.5"
        raise OptionError(msg) from None


def checked_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """One finite weight for each of `count` adapters; 1 for all where none was given.

    Raises:
        OptionError: there are more or fewer, or one is NaN or infinite.
    """
    if weights is None:
        return (1.0,) * count
    faults = [f"weight {place} is {weight}" for place, weight in enumerate(weights, 1) if not math.isfinite(weight)]
    if len(weights) != count:
        faults.append(f"{len(weights)} weights for {count} adapters")
    if faults:
        msg = "--weights: expected one finite number for each adapter"
        raise OptionError.listing(msg, faults)
    return tuple(float(weight) for weight in weights)
