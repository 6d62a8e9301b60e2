"""Leading singular triplets, by Krylov iteration and by the whole Gram matrix, against the Eckart–Young optimum."""

import math

import pytest
import torch

from eckart.errors import EckartError
from eckart.linalg import factorize, partial_svd, spectrum, truncated_svd

from .planting import SPECTRA, Streamed, dense_tails, dense_values, one_to, orthonormal, planted, seeded

SHAPES = [(160, 160), (300, 100), (100, 300), (1, 60), (60, 1), (12, 12)]
PRECISION = {torch.float32: 2e-6, torch.float64: 1e-13}
METHODS = {"partial": partial_svd, "truncated": truncated_svd}


def product(found):
    return (found.U.double() * found.S) @ found.Vh.double()


def assert_orthonormal(U, Vh, tolerance):
    eye = torch.eye(U.shape[1], dtype=torch.float64)
    assert float((U.double().T @ U.double() - eye).abs().max()) < tolerance
    assert float((Vh.double() @ Vh.double().T - eye).abs().max()) < tolerance


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_factors_are_orthonormal_and_their_error_is_the_one_stated(method, kind, shape, dtype):
    weight = planted(SPECTRA[kind](min(shape)), shape, seed=11).to(dtype)
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    total = float(torch.linalg.norm(weight.double()))
    for rank in {1, min(8, *shape), min(shape)}:
        found = METHODS[method](weight, rank=rank, generator=seeded())
        assert (found.U.shape, found.Vh.shape) == ((shape[0], rank), (rank, shape[1]))
        assert found.U.dtype == found.Vh.dtype == computed
        assert found.S.dtype == torch.float64
        assert bool((found.S.diff() <= 0).all())
        assert bool((found.S >= 0).all())
        assert_orthonormal(found.U, found.Vh, 20 * PRECISION[computed])
        actual = float(torch.linalg.norm(weight.double() - product(found)))
        stated = math.sqrt(max(0.0, total**2 - float(found.S.square().sum())))
        assert actual == pytest.approx(stated, abs=3e-3 * total if computed == torch.float32 else 1e-6 * total)
        assert actual >= math.sqrt(float(dense_tails(dense_values(weight))[rank])) * (1 - 1e-6) - 1e-6 * total


@pytest.mark.parametrize(
    ("kind", "excess"),
    [("i^-1/4", 4e-3), ("i^-1/2", 1e-3), ("i^-1", 1e-5), ("exponential", 1e-4), ("spikes and noise", 4e-3)],
)
@pytest.mark.parametrize("shape", [(400, 400), (900, 250), (250, 900)], ids=str)
def test_a_partial_svd_is_nearly_the_best_approximation_of_its_rank(kind, excess, shape):
    weight = planted(SPECTRA[kind](min(shape)), shape, seed=5).to(torch.float32)
    for rank in (8, 20):
        found = partial_svd(weight, rank=rank, generator=seeded())
        best = float(dense_tails(dense_values(weight))[rank])
        squared = float(torch.linalg.norm(weight.double() - product(found))) ** 2
        assert squared / best - 1 < excess
        assert found.error == pytest.approx(math.sqrt(squared) / found.fro_norm, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("weight", "rank", "best"),
    [
        (torch.eye(600), 32, math.sqrt(1 - 32 / 600)),
        (orthonormal(500, 300, seeded(2)).to(torch.float32), 40, math.sqrt(1 - 40 / 300)),
        (planted(torch.ones(32), (400, 500)).to(torch.float32), 32, 0.0),
        (planted(torch.cat([torch.full((20,), 3.0), torch.full((24,), 2.0)]), (400, 300)).to(torch.float32), 44, 0.0),
        (torch.block_diag(*[torch.full((10, 10), 0.5)] * 40), 40, 0.0),
    ],
    ids=["identity", "orthogonal", "equal values", "two equal values", "blocks"],
)
def test_values_tied_more_often_than_a_block_is_wide_are_all_found(method, weight, rank, best):
    found = METHODS[method](weight, rank=rank, generator=seeded())
    error = float(torch.linalg.norm(weight.double() - product(found)) / torch.linalg.norm(weight.double()))
    assert error == pytest.approx(best, abs=2e-6)


@pytest.mark.parametrize("rank", [4, 20, 60, 120])
@pytest.mark.parametrize("shape", [(240, 300), (300, 240)], ids=str)
def test_both_roads_to_a_truncated_svd_lead_to_the_same_place(rank, shape, monkeypatch):
    weight = planted(torch.exp(-one_to(240) / 10), shape, seed=3)
    monkeypatch.setattr("eckart.linalg.truncated.CERTIFIED_STEPS", 1000)
    whole = truncated_svd(weight, rank=rank)
    assert whole.spectrum.complete
    found = partial_svd(weight, rank=rank, steps=8, generator=seeded())
    assert float(torch.linalg.norm(product(whole) - product(found))) < 1e-4 * found.fro_norm * math.exp(-rank / 10)
    torch.testing.assert_close(whole.S, found.S, rtol=1e-6, atol=1e-11)


@pytest.mark.parametrize(("rank", "complete"), [(8, False), (16, False), (60, True), (300, True)])
def test_a_small_rank_is_certified_and_a_large_one_exact(rank, complete):
    weight = planted(one_to(300) ** -1, (300, 400)).to(torch.float32)
    found = truncated_svd(weight, rank=rank, generator=seeded())
    assert found.spectrum.complete == complete
    assert len(found.spectrum.singular_values) == (300 if complete else rank)
    torch.testing.assert_close(found.S, dense_values(weight)[:rank], rtol=1e-4, atol=0)


@pytest.mark.parametrize("rank", [10, 100])
def test_a_float32_matrix_that_falls_by_seven_orders_keeps_orthonormal_factors(rank):
    weight = planted(torch.logspace(0, -7, 400, dtype=torch.float64), (400, 500)).to(torch.float32)
    for found in (partial_svd(weight, rank=rank, generator=seeded()), truncated_svd(weight, rank=rank)):
        assert_orthonormal(found.U, found.Vh, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_gives_one_result_and_another_seed_the_same_values(method):
    weight = planted(one_to(300) ** -1, (300, 400)).to(torch.float32)
    first, again, other = (METHODS[method](weight, rank=8, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.U, again.U)
    assert torch.equal(first.S, again.S)
    assert torch.equal(first.Vh, again.Vh)
    torch.testing.assert_close(first.S, other.S, rtol=1e-5, atol=0)


def test_a_generator_leaves_the_global_randomness_alone():
    weight = torch.randn(80, 90, generator=seeded())
    state = torch.get_rng_state()
    truncated_svd(weight, rank=3, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", [*METHODS.values(), factorize], ids=[*METHODS, "factorize"])
@pytest.mark.parametrize(("shape", "rank"), [((5, 8), 0), ((5, 8), -1), ((5, 8), 6), ((8, 5), 6), ((0, 5), 1)])
def test_a_rank_that_the_matrix_cannot_have_is_refused(method, shape, rank):
    with pytest.raises(EckartError, match=f"`rank` must be from 1 to {min(shape)} for a .* matrix, got {rank}"):
        method(torch.ones(shape), rank=rank)


@pytest.mark.parametrize("method", [*METHODS.values(), factorize], ids=[*METHODS, "factorize"])
@pytest.mark.parametrize("side", [6, 300])
def test_a_value_that_is_not_finite_is_refused(method, side):
    weight = torch.ones(side, side)
    weight[3, 4] = math.nan
    with pytest.raises(EckartError, match="contains 1 values that are NaN or Inf"):
        method(weight, rank=2)


@pytest.mark.parametrize("rank", [6, 70])
@pytest.mark.parametrize("shape", [(400, 150), (150, 400)], ids=str)
def test_a_matrix_too_large_to_hold_is_streamed_to_the_same_triplets(rank, shape, monkeypatch):
    weight = planted(one_to(150) ** -1, shape, seed=8).to(torch.float32)
    held = truncated_svd(weight, rank=rank, generator=seeded())
    monkeypatch.setattr("eckart.linalg.krylov.RESIDENT_BYTES", 0)
    source = Streamed(weight, rows=23)
    streamed = truncated_svd(source, rank=rank, generator=seeded())
    assert source.most_alive <= 2
    assert float(torch.linalg.norm(product(streamed) - product(held))) < 1e-4 * float(torch.linalg.norm(weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_factors_multiply_to_the_best_approximation_and_share_its_norm_evenly(dtype):
    weight = planted(one_to(90) ** -1, (120, 90)).to(dtype)
    found = factorize(weight, rank=30)
    assert found.rank == 30
    assert found.lora_B.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    error = float(torch.linalg.norm(weight.double() - found.lora_B.double() @ found.lora_A.double()))
    assert error == pytest.approx(math.sqrt(float(dense_tails(dense_values(weight))[30])), rel=1e-5)
    lengths = torch.linalg.vector_norm(found.lora_B, dim=0), torch.linalg.vector_norm(found.lora_A, dim=1)
    torch.testing.assert_close(*lengths, rtol=1e-4, atol=0)
    torch.testing.assert_close(lengths[0].double() ** 2, dense_values(weight)[:30], rtol=1e-4, atol=0)


def test_the_spectrum_that_comes_along_is_the_one_computed_alone():
    weight = planted(one_to(60) ** -1, (90, 60))
    along = truncated_svd(weight, rank=30).spectrum
    torch.testing.assert_close(along.singular_values, spectrum(weight).singular_values, rtol=1e-10, atol=0)
    assert along.fro_norm == pytest.approx(spectrum(weight).fro_norm, rel=1e-14)
