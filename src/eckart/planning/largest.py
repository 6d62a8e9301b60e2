"""The largest batch and the longest sequence that fit, found in few simulations."""

from collections.abc import Callable
from dataclasses import replace

from eckart.planning.forecaster import Forecaster
from eckart.planning.setting import PlanSetting

MAX_BATCH, LENGTH_STEP, MAX_LENGTH = 64, 128, 32_768
_TRIES = 15


def largest_batch(forecaster: Forecaster, setting: PlanSetting, limit: int) -> int:
    """Largest number of sequences per step that fits."""

    def peak(batch: int) -> int:
        return forecaster.quick(replace(setting, batch_size=batch)).peak_bytes

    fits = setting.batch_size
    return largest(peak, limit, fits=fits, most=max(MAX_BATCH, fits), guess=2 * fits)


def largest_length(forecaster: Forecaster, setting: PlanSetting, limit: int) -> int:
    """Longest single sequence that fits, in steps of 128 tokens, up to the model's context length."""
    positions = (forecaster.outline.positions if forecaster.outline else None) or MAX_LENGTH
    most = min(positions, MAX_LENGTH) // LENGTH_STEP
    fits = setting.length // LENGTH_STEP
    if most <= fits or not fits:
        return setting.length

    def peak(steps: int) -> int:
        return forecaster.quick(replace(setting, length=steps * LENGTH_STEP)).peak_bytes

    # Two sequences need as much as one of twice the length, unless attention stores its full matrix.
    one, two = peak(fits), forecaster.quick(replace(setting, batch_size=2)).peak_bytes
    guess = int((limit - one) / max(two - one, 1) * fits) + fits
    return LENGTH_STEP * largest(peak, limit, fits=fits, most=most, guess=guess)


def largest(peak: Callable[[int], int], limit: int, *, fits: int, most: int, guess: int) -> int:
    """The largest integer up to `most` whose peak is within the limit, found in few tries.

    Bisection, but two of three tries are where a straight line through the last results meets the limit: peaks grow
    almost linearly with the batch. The result was tried and fits; after fifteen tries it may not be the very largest.

    Args:
        peak: bytes for a number; must not decrease.
        limit: bytes available.
        fits: a number that fits.
        most: largest number of interest.
        guess: what to try first.
    """
    peaks = {fits: peak(fits)}
    fails = most + 1
    for tries in range(_TRIES):
        if fails - fits <= 1:
            break
        if tries % 3 == 2:  # a curve stays away from every line
            guess = (fits + fails) // 2
        guess = min(max(guess, fits + 1), fails - 1)
        peaks[guess] = peak(guess)
        if peaks[guess] <= limit:
            fits = guess
        else:
            fails = guess
        low, high = sorted(peaks)[-2:] if fails not in peaks else (fits, fails)
        slope = (peaks[high] - peaks[low]) / (high - low)
        guess = most if slope <= 0 else fits + int((limit - peaks[fits]) / slope)
    return fits
