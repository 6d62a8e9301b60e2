"""The smallest rank for a target, against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from eckart.errors import EckartError
from eckart.linalg import Spectrum

PERCENT = 100
SHAPES = ((12, 12), (12, 40), (40, 12))


def spectrum_of(values, shape=None):
    values = torch.as_tensor(values, dtype=torch.float64)
    return Spectrum(values, shape or (len(values), len(values)), float(torch.linalg.vector_norm(values)))


def first(enough):
    return next(rank for rank, flag in enumerate(enough) if flag)


def exact_tails(values):
    """Squared errors at ranks 0…k as rationals, without rounding."""
    squares = [Fraction(value) ** 2 for value in values]
    return [sum(squares[rank:], Fraction(0)) for rank in range(len(squares) + 1)]


def whole_number_spectra(count, *, top, seed):
    """Descending whole numbers with many ties and zeros, from 1 to 12 of them: their energies are exact in float64."""
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.integers(0, top + 1, size=(count, 12)), axis=1)[:, ::-1]
    lengths = rng.integers(1, 13, size=count)
    return [row[:length].tolist() for row, length in zip(drawn, lengths, strict=True) if row[0] > 0]


@pytest.mark.slow
def test_ranks_agree_with_exact_arithmetic_on_ten_thousand_spectra_and_targets():
    rng = np.random.default_rng(1)
    pairs = boundaries = 0
    for top in (1, 3, 20):
        for values in whole_number_spectra(1200, top=top, seed=top):
            known = spectrum_of(values, SHAPES[pairs % 3])
            tails = exact_tails(values)
            for percent in (*rng.integers(1, PERCENT, size=2).tolist(), PERCENT):
                target = Fraction(percent, PERCENT)
                by_error = first(tail < target**2 * tails[0] for tail in tails)
                by_energy = first(tails[0] - tail >= target * tails[0] for tail in tails)
                assert known.rank_for_error(percent / PERCENT) == by_error, (values, percent)
                assert known.rank_for_energy(percent / PERCENT) == by_energy, (values, percent)
                pairs += 2
                boundaries += sum(tail == target**2 * tails[0] for tail in tails)
                boundaries += sum(tails[0] - tail == target * tails[0] for tail in tails)
    assert pairs > 10_000
    assert boundaries > 1_000  # targets that some rank meets exactly: not enough for an error, enough for an energy


def test_ranks_agree_with_exact_arithmetic_over_fourteen_orders_of_magnitude():
    rng = np.random.default_rng(2)
    for _ in range(500):
        values = sorted((10 ** rng.uniform(-7, 7, size=8)).tolist(), reverse=True)
        known, tails = spectrum_of(values), exact_tails(values)
        for target in (10 ** rng.uniform(-13, 0, size=4)).tolist():
            assert known.rank_for_error(target) == first(tail < Fraction(target) ** 2 * tails[0] for tail in tails)


@pytest.mark.parametrize(
    ("values", "target", "rank"),
    [
        ((4.0, 3.0), 0.6, 2),  # the error at rank 1 is 0.6 exactly
        ((4.0, 3.0), 0.6000001, 1),
        ((4.0, 3.0), 1.0, 1),  # nor is an error of 1 below 1
        ((5.0,), 1e-300, 1),
        ((5.0, 0.0, 0.0), 1e-12, 1),
        ((1.0, 1.0, 1.0, 1.0), 0.5, 4),
        ((1.0, 1.0, 1.0, 1.0), math.nextafter(0.5, 1), 3),
        ((1e100, 1e80), 1e-12, 1),
    ],
)
def test_an_error_exactly_at_the_target_is_not_enough(values, target, rank):
    assert spectrum_of(values).rank_for_error(target) == rank


@pytest.mark.parametrize("seed", range(20))
def test_the_error_reported_at_a_rank_needs_one_more_and_the_energy_reported_does_not(seed):
    values = np.sort(np.random.default_rng(seed).exponential(size=30))[::-1].copy()
    known = spectrum_of(values)
    for rank in range(1, 30):
        assert known.rank_for_error(float(known.errors()[rank])) == rank + 1
        assert known.rank_for_energy(float(known.cumulative_energy()[rank - 1])) == rank


def test_a_tiny_tail_keeps_its_digits_next_to_a_large_head():
    values = [1e6, *[0.01] * 200]  # at rank r the error is 1e-8·√(201 − r)
    known = spectrum_of(values)
    for target in (1.4e-7, 1e-7, 5e-8, 1.5e-8):
        assert (
            known.rank_for_error(target)
            == first(0.01 * math.sqrt(201 - rank) / known.fro_norm < target for rank in range(1, 202)) + 1
        )
    assert float(known.errors()[200]) == pytest.approx(1e-8, rel=1e-12)


def test_all_of_the_energy_means_that_nothing_is_left():
    assert spectrum_of([1e6, 1e-6]).rank_for_energy(1.0) == 2
    assert spectrum_of([1e6, 0.0]).rank_for_energy(1.0) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (4, 4)])
def test_a_zero_matrix_has_no_rank_for_any_target(shape):
    known = spectrum_of(torch.zeros(min(shape)), shape)
    assert known.rank_for_error(0.1) is None
    assert known.rank_for_energy(0.9) is None
    assert known.errors().tolist() == [0.0] * (min(shape) + 1)


def test_an_empty_matrix_has_nothing():
    known = spectrum_of([], (0, 5))
    assert known.errors().tolist() == [0.0]
    assert known.cumulative_energy().tolist() == []
    assert known.rank_for_error(0.1) is None
    assert known.spectral_norm == 0.0


@pytest.mark.parametrize("target", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_a_target_outside_its_range_is_refused(target):
    known = spectrum_of([2.0, 1.0])
    with pytest.raises(EckartError, match="must be in"):
        known.rank_for_error(target)
    with pytest.raises(EckartError, match="must be in"):
        known.rank_for_energy(target)


@pytest.mark.parametrize("rank", range(6))
def test_the_errors_are_those_of_the_truncated_matrix(rank):
    values = torch.tensor([9.0, 7.0, 7.0, 0.5, 0.0], dtype=torch.float64)
    truncated = torch.diag(values)
    truncated[torch.arange(5) >= rank] = 0
    error = torch.linalg.norm(torch.diag(values) - truncated) / torch.linalg.norm(values)
    assert float(spectrum_of(values).errors()[rank]) == pytest.approx(float(error), abs=1e-15)
