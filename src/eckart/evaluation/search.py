"""The smallest candidate that keeps enough of a gain, found with few measurements."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

FIRST_POWER = 2.3  # of the lost energy, that the lost gain is before anything is measured
NEAR = (
    0.1  # candidates below the answer are measured while they miss `keep` by less than this share of what may be lost
)


def smallest_sufficient(
    lost: Sequence[float], gain: Callable[[int], float], *, keep: float, last: float | None = None
) -> tuple[int | None, dict[int, float]]:
    """The smallest candidate whose gain is at least `keep`, by its index.

    The lost gain is taken for a power of the lost energy, which is fitted to what was measured, to guess the next
    candidate between one that misses and one that suffices. Gains need not rise with the rank: the neighbour below the
    answer is always measured, and those below it while they miss by little, or by less than a measured gain fell
    from one candidate to a higher one; at most a third of the candidates are measured unless the bracket needs more.

    Args:
        lost: share of the squared update that each candidate loses, from the smallest candidate to the largest.
        gain: measures a candidate.
        keep: the gain that suffices.
        last: the gain of the last candidate, if it is known.

    Returns:
        The index, None if the last candidate and its neighbour do not suffice; and every measured gain by index.
    """
    gains: dict[int, float] = {} if last is None else {len(lost) - 1: last}

    def measured(index: int) -> float:
        if index not in gains:
            gains[index] = gain(index)
        return gains[index]

    high, low, widths = len(lost) - 1, -1, [len(lost)]
    if measured(high) < keep:
        high -= 1
        if high < 0 or measured(high) < keep:
            return None, gains
    while high - low > 1:
        widths.append(high - low)
        slow = len(widths) > 3 and 2 * widths[-1] > widths[-3]
        index = (low + high) // 2 if slow else _guess(lost, gains, low, high, keep)
        if measured(index) >= keep:
            high = index
        else:
            low = index
    margin = max(NEAR * (1 - keep), _largest_fall(gains))
    most = max(len(lost) // 3, len(gains))
    while low > 0 and keep - gains[low] < margin and (low - 1 in gains or len(gains) < most):
        low -= 1
        if measured(low) >= keep:
            high, low = low, low - 1
            if low >= 0:
                measured(low)
    return high, gains


def _guess(lost: Sequence[float], gains: dict[int, float], low: int, high: int, keep: float) -> int:
    """The first candidate between two that keeps enough, if the lost gain is a power of the lost energy."""
    near = sorted(gains, key=lambda index: abs(gains[index] - keep))
    powers = [math.log(1 - gains[i]) / math.log(lost[i]) for i in near if 0 < gains[i] < 1 and 0 < lost[i] < 1]
    power = next((power for power in powers if power > 0), FIRST_POWER)
    allowed = (1 - keep) ** (1 / power)
    first = next((index for index, energy in enumerate(lost) if energy <= allowed), high)
    return min(max(first, low + 1), high - 1)


def _largest_fall(gains: dict[int, float]) -> float:
    """By how much a measured gain is lower than that of the candidate measured below it, at most."""
    ordered = [gains[index] for index in sorted(gains)]
    return max((before - after for before, after in pairwise(ordered)), default=0.0)
