"""The largest of something that still fits, found in few tries."""

from collections.abc import Callable

_TRIES = 15


def largest(peak: Callable[[int], int], limit: int, *, fits: int, most: int, guess: int) -> int:
    """The largest whole number up to `most` whose peak is within the limit.

    Bisection, with two of three tries where a straight line through what is known meets the limit: peaks grow almost
    linearly with a batch. Whatever is returned was tried and fits; after fifteen tries it may not be the very largest.

    Args:
        peak: bytes that a number takes; must not fall as it grows.
        limit: bytes that there are.
        fits: a number that is known to fit.
        most: where to stop.
        guess: what to try first.
    """
    known = {fits: peak(fits)}
    fails = most + 1
    for tries in range(_TRIES):
        if fails - fits <= 1:
            break
        if tries % 3 == 2:  # a curve keeps its distance from every line
            guess = (fits + fails) // 2
        guess = min(max(guess, fits + 1), fails - 1)
        known[guess] = peak(guess)
        if known[guess] <= limit:
            fits = guess
        else:
            fails = guess
        low, high = sorted(known)[-2:] if fails not in known else (fits, fails)
        slope = (known[high] - known[low]) / (high - low)
        guess = most if slope <= 0 else fits + int((limit - known[fits]) / slope)
    return fits
