"""The smallest rank that keeps a gain, and the interval of a gain: on curves and losses of known answer."""

import math
from itertools import pairwise

import pytest
import torch

from eckart.evaluation.bootstrap import Gains, times_needed
from eckart.evaluation.search import smallest_sufficient
from eckart.linalg.interval import Interval


def curve(count, power, *, wobble=0.0, seed=0, floor=0.0):
    """Energies lost by candidates 1…count of a spectrum, and gains: a power of them, with a wobble."""
    generator = torch.Generator().manual_seed(seed)
    energies = 1.0 / torch.arange(1, 2 * count + 1, dtype=torch.float64)
    lost = 1 - (1 - floor) * energies.cumsum(0)[:count] / energies[:count].sum()
    noise = wobble * torch.randn(count, generator=generator, dtype=torch.float64)
    return lost.clamp_min(0).tolist(), (1 - lost.clamp_min(0) ** power + noise).tolist()


def every_rank(gains, keep):
    return next((index for index, gain in enumerate(gains) if gain >= keep), None)


def asking(gains):
    """The list of candidates that a function returning gains was asked for, and this function."""
    asked = []
    return asked, lambda index: asked.append(index) or gains[index]


@pytest.mark.parametrize("wobble", [0.0, 0.0005])
@pytest.mark.parametrize("keep", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("power", [1.0, 2.3, 6.0, 12.0])
def test_the_answer_is_that_of_trying_every_rank_in_a_third_of_the_measurements(power, keep, wobble):
    for seed in range(20):
        lost, gains = curve(64, power, wobble=wobble, seed=seed, floor=0.02)
        asked, measure = asking(gains)
        index, known = smallest_sufficient(lost, measure, keep=keep)
        assert index == every_rank(gains, keep)
        assert sorted(asked) == sorted(known)
        assert len(asked) == len(set(asked)) <= 64 // 3


@pytest.mark.parametrize(
    ("dip", "answer"),
    [({}, 12), ({11: 0.9501}, 11), ({11: 0.9495, 10: 0.951}, 10), ({11: 0.9499, 10: 0.9499, 9: 0.952}, 9)],
)
def test_neighbours_below_are_measured_where_they_miss_by_little(dip, answer):
    gains = [0.3 + 0.05 * min(index, 12) + 0.0001 * index for index in range(48)]
    gains[11] = 0.9
    gains[12:] = [0.9502 + 0.0001 * index for index in range(12, 48)]
    for index, gain in dip.items():
        gains[index] = gain
    lost = [(1 - min(gain, 0.999)) ** 0.5 for gain in gains]
    index, known = smallest_sufficient(lost, gains.__getitem__, keep=0.95)
    assert index == answer == every_rank(gains, 0.95)
    assert index - 1 in known
    assert len(known) <= 48 // 3


def test_eight_ranks_of_an_adapter_take_two_measurements():
    gains = [0.898, 0.947, 0.969, 0.98, 0.985, 0.99, 0.995, 1.0]
    lost = [0.436, 0.29, 0.2, 0.15, 0.1, 0.06, 0.02, 0.0]
    index, known = smallest_sufficient(lost, gains.__getitem__, keep=0.95, last=1.0)
    assert (index, sorted(known)) == (2, [1, 2, 7])


def test_where_no_candidate_suffices_the_largest_and_its_neighbour_were_measured():
    lost, gains = curve(32, 1.0, floor=0.6)
    index, known = smallest_sufficient([0.6 + 0.4 * e for e in lost], gains.__getitem__, keep=1.5)
    assert index is None
    assert sorted(known) == [30, 31]
    assert smallest_sufficient([0.2], [0.5].__getitem__, keep=0.9) == (None, {0: 0.5})
    assert smallest_sufficient([0.9, 0.2], [0.96, 0.5].__getitem__, keep=0.9)[0] == 0


def losses(parts, seed, *, gain=0.8, spread=0.3):
    """Losses of base, fine-tune and adapter on parts, whose differences scatter, around a gain of `gain`."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: spread * torch.randn(parts, generator=generator, dtype=torch.float64)  # noqa: E731
    base = 100 + 10 * torch.randn(parts, generator=generator, dtype=torch.float64)
    difference = 1 + draw()
    return base, base - difference, base - gain * difference - 0.3 * draw()


@pytest.mark.parametrize("parts", [5, 20, 100])
def test_the_interval_contains_the_gain_as_often_as_it_says(parts):
    trials, covered = 200, 0
    for seed in range(trials):
        base, tuned, adapter = losses(parts, seed)
        interval = Gains(base, tuned).interval(adapter)
        assert interval is not None
        covered += interval.lower <= 0.8 <= interval.upper
    assert 0.9 <= covered / trials <= 0.995


def test_the_interval_narrows_with_the_square_root_of_the_text():
    widths = []
    for parts in (50, 200, 800):
        base, tuned, adapter = losses(parts, 1)
        interval = Gains(base, tuned).interval(adapter)
        widths.append(interval.upper - interval.lower)
    assert [a / b for a, b in pairwise(widths)] == pytest.approx([2, 2], rel=0.25)


def test_models_are_compared_on_the_same_parts():
    base, tuned, _ = losses(30, 2)
    half = base - 0.5 * (base - tuned)
    interval = Gains(base, tuned).interval(half)
    assert (interval.lower, interval.upper) == (pytest.approx(0.5), pytest.approx(0.5))
    assert Gains(base, tuned).interval(half) == interval


def test_too_little_text_gives_no_interval():
    base, tuned, adapter = losses(3, 0)
    assert Gains(base, tuned).interval(adapter) is None
    base, tuned, adapter = losses(40, 0, spread=30.0)
    assert Gains(base, tuned).interval(adapter) is None
    assert math.isnan(Gains(tuned, tuned).gain(adapter))


@pytest.mark.parametrize(
    ("gain", "interval", "times"),
    [
        (0.97, Interval(0.96, 0.98), 1.0),
        (0.96, Interval(0.94, 0.98), 4.0),
        (0.94, Interval(0.92, 0.96), 4.0),
        (0.95, Interval(0.93, 0.97), math.inf),
        (0.96, None, math.inf),
    ],
)
def test_the_text_that_is_needed_grows_with_the_square_of_the_width(gain, interval, times):
    assert times_needed(gain, interval, 0.95) == pytest.approx(times)
