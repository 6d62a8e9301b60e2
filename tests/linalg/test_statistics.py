"""Statistics of a spectrum against their definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eckart.linalg import Spectrum, spectrum

from .planting import planted

POSITIVE = arrays(np.float64, st.integers(1, 20), elements=st.floats(1e-6, 1e6))


def spectrum_of(values, dtype=torch.float32, shape=None):
    values = torch.as_tensor(np.sort(values)[::-1].copy(), dtype=torch.float64)
    return Spectrum(values, shape or (len(values), len(values)), float(torch.linalg.vector_norm(values)), dtype)


@given(POSITIVE)
def test_statistics_are_what_their_definitions_say(values):
    known = spectrum_of(values)
    squares, shares = values**2, values / values.sum()
    assert known.spectral_norm == values.max()
    assert known.stable_rank == pytest.approx(squares.sum() / squares.max(), rel=1e-12)
    assert known.participation_ratio == pytest.approx(squares.sum() ** 2 / (squares**2).sum(), rel=1e-12)
    assert known.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)


@given(POSITIVE)
def test_every_effective_size_is_between_one_and_the_number_of_values(values):
    known = spectrum_of(values)
    for size in (known.stable_rank, known.participation_ratio, known.effective_rank):
        assert 1 - 1e-12 <= size <= len(values) * (1 + 1e-12)
    assert known.stable_rank <= known.participation_ratio * (1 + 1e-12)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_equal_values_count_fully(count):
    known = spectrum_of(np.full(count, 3.0))
    for size in (known.stable_rank, known.participation_ratio, known.effective_rank):
        assert size == pytest.approx(count, rel=1e-12)


def test_statistics_of_a_zero_matrix_are_undefined():
    known = spectrum_of(np.zeros(4))
    assert known.stable_rank is None
    assert known.effective_rank is None
    assert known.participation_ratio is None
    assert known.numerical_rank == 0
    assert known.spectral_norm == 0.0


@given(POSITIVE)
def test_energies_rise_and_errors_fall_and_both_end_where_they_must(values):
    known = spectrum_of(values)
    errors, energies = known.errors(), known.cumulative_energy()
    assert float(errors[0]) == 1.0
    assert float(errors[-1]) == 0.0
    assert bool((errors.diff() <= 0).all())
    assert bool((energies.diff() >= 0).all())
    assert float(energies[-1]) == 1.0
    torch.testing.assert_close(energies, 1 - errors[1:].square(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(30, 30), (80, 30), (30, 80)])
@pytest.mark.parametrize("rank", [1, 5, 29, 30])
def test_the_numerical_rank_is_what_numpy_counts(dtype, shape, rank):
    weight = planted(torch.linspace(2, 1, rank), shape).to(dtype)
    wide = weight if dtype == torch.float64 else weight.to(torch.float32)
    assert spectrum(weight).numerical_rank == np.linalg.matrix_rank(wide.numpy())


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, 2.0**-52), (torch.float32, 2.0**-23)])
def test_the_numerical_rank_counts_what_is_above_its_limit(dtype, eps):
    limit = 100 * eps  # of the longer side, 100
    values = np.array([1.0, limit * 1.001, limit, limit * 0.999, 0.0])
    assert spectrum_of(values, dtype, (5, 100)).numerical_rank == 2


def test_scaling_changes_only_norms():
    values = np.array([3.0, 2.0, 0.5])
    small, large = spectrum_of(values * 1e-60), spectrum_of(values * 1e60)
    for name in ("stable_rank", "effective_rank", "participation_ratio", "numerical_rank"):
        assert getattr(small, name) == pytest.approx(getattr(large, name), rel=1e-12)
    assert large.fro_norm == pytest.approx(1e120 * small.fro_norm)
    assert math.isclose(large.spectral_norm, 3e60)
