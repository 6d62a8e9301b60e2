"""The smallest rank for an error, where the answer is known from every rank tried."""

import numpy as np
import pytest
import torch

from eckart.errors import EckartError
from eckart.linalg import RankBound, Spectrum, minimal_rank, spectrum
from eckart.linalg.rank import FULL_SPECTRUM_SIDE

from .planting import Streamed, dense_tails, dense_values, one_to, planted, seeded


def lesson_matrices():
    """A 768×768 matrix of true rank 64 under noise, then three more ranks and a random one, drawn in that order."""
    rng = np.random.RandomState(42)

    def draw(rank, noise):
        A, B = rng.randn(768, rank), rng.randn(rank, 768)
        return A @ B / rank + noise * rng.randn(768, 768)

    yield draw(64, 0.01)
    yield from (draw(rank, 0.005) for rank in (16, 64, 128))
    yield rng.randn(768, 768)


def test_the_lesson_matrices_need_the_ranks_that_the_dense_spectrum_gives():
    for weight, rank in zip(lesson_matrices(), [570, 265, 454, 527, 731], strict=True):
        assert minimal_rank(weight, error=0.01) == RankBound(rank, rank)
        tails = dense_tails(dense_values(torch.from_numpy(weight)))
        assert float(tails[rank] / tails[0]) < 0.01**2 <= float(tails[rank - 1] / tails[0])


def test_the_lesson_matrix_reconstructed_at_one_rank_less_misses_the_target():
    weight = torch.from_numpy(next(lesson_matrices()))
    U, S, Vh = torch.linalg.svd(weight)
    rank = minimal_rank(weight, error=0.01).lower
    for tried, enough in ((rank - 1, False), (rank, True)):
        error = torch.linalg.norm(weight - (U[:, :tried] * S[:tried]) @ Vh[:tried]) / torch.linalg.norm(weight)
        assert bool(error < 0.01) == enough


def test_tail_sums_that_count_from_one_are_off_by_one():
    weight = torch.from_numpy(next(lesson_matrices()))
    S = spectrum(weight).singular_values.numpy()
    # What is left from the count-th value on is the error at rank count − 1.
    tails = enumerate(np.sqrt(np.cumsum(S[::-1] ** 2)[::-1] / (S**2).sum()), start=1)
    count = next(count for count, tail in tails if tail < 0.01)
    assert (minimal_rank(weight, error=0.01).lower, count) == (570, 571)


@pytest.mark.parametrize(("power", "error"), [(1.0, 0.5), (1.0, 0.1), (1.5, 0.1), (1.5, 0.04)])
@pytest.mark.parametrize("shape", [(1100, 1200), (1200, 1100)], ids=str)
def test_a_rank_small_compared_with_the_matrix_is_certified_without_the_full_spectrum(error, shape, power, monkeypatch):
    # A diagonal matrix: a Gaussian start meets it as it meets any other of its singular values.
    values = one_to(1100) ** -power
    weight = torch.zeros(shape)
    weight[torch.arange(1100), torch.arange(1100)] = values.to(torch.float32)
    oracle = spectrum_of(weight.diagonal(), shape).rank_for_error(error)
    monkeypatch.setattr("eckart.linalg.rank.spectrum", refuse)
    assert minimal_rank(weight, error=error, generator=seeded()) == RankBound(oracle, oracle)


def spectrum_of(values, shape):
    values = values.to(torch.float64)
    return Spectrum(values, shape, float(torch.linalg.vector_norm(values)))


def refuse(matrix):
    pytest.fail(f"the whole spectrum of {matrix.shape} was taken")


@pytest.mark.parametrize("error", [0.9, 0.3, 0.01])
def test_a_large_dense_matrix_needs_the_rank_that_its_dense_svd_gives(error):
    weight = torch.randn(1100, 1050, generator=seeded()) / 40
    weight += torch.randn(1100, 20, generator=seeded(1)) @ torch.randn(20, 1050, generator=seeded(2)) / 20
    oracle = spectrum_of(dense_values(weight), (1100, 1050)).rank_for_error(error)
    assert minimal_rank(weight, error=error, generator=seeded()) == RankBound(oracle, oracle)


def test_a_large_matrix_on_disk_is_searched_as_one_in_memory():
    weight = torch.randn(1100, 12, generator=seeded()) @ torch.randn(12, 1100, generator=seeded(1))
    expected = spectrum_of(dense_values(weight), (1100, 1100)).rank_for_error(0.2)
    assert FULL_SPECTRUM_SIDE < 1100
    assert minimal_rank(Streamed(weight, rows=300), error=0.2, generator=seeded()) == RankBound(expected, expected)


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (1100, 1030)])
def test_a_zero_matrix_needs_rank_zero(shape):
    assert minimal_rank(torch.zeros(shape), error=0.1) == RankBound(0, 0)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (30, 20)])
@pytest.mark.parametrize("error", [1e-6, 0.5, 1.0])
def test_exact_ranks_of_small_matrices_are_those_of_their_spectrum(shape, error):
    weight = planted(torch.linspace(3, 1, min(shape)), shape)
    bound = minimal_rank(weight, error=error)
    assert bound.is_exact
    assert bound.lower == spectrum(weight).rank_for_error(error)


@pytest.mark.parametrize("error", [0.0, -1.0, 1.5])
@pytest.mark.parametrize("side", [4, 1100])
def test_an_error_out_of_range_is_refused(error, side):
    with pytest.raises(EckartError, match="`error` must be in"):
        minimal_rank(torch.eye(side), error=error, generator=seeded())
