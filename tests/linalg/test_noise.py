"""What noise is taken for: planted signals under rounding, in the dead zone of a grid, and above a random bulk."""

import math

import pytest
import torch

from eckart.linalg import (
    bulk_noise,
    difference_noise,
    partial_spectrum,
    product_noise,
    rounding_variance,
    spectrum,
    zero_fraction,
)

from .planting import Streamed, planted, seeded

STD = 0.02  # of a weight


def update(shape, *, rank, rms, seed):
    generator = seeded(seed)
    product = torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)
    return product * (rms / float(product.square().mean().sqrt()))


def fine_tuned(dtype, *, ratio, rank=8, shape=(384, 384), seed=0):
    """A stored base, and what it becomes when an update of `ratio` times its size is added and stored again."""
    base = (STD * torch.randn(shape, generator=seeded(seed))).to(dtype)
    tuned = (base.float() + update(shape, rank=rank, rms=ratio * STD, seed=seed + 1000)).to(dtype)
    return tuned, tuned.float() - base.float()


@pytest.mark.parametrize(
    ("dtype", "ratio", "regime"),
    [
        (torch.bfloat16, 1e-1, "additive"),
        (torch.bfloat16, 1e-2, "additive"),
        (torch.bfloat16, 3e-3, "additive"),
        (torch.bfloat16, 2e-3, "dead-zone"),
        (torch.bfloat16, 1e-3, "dead-zone"),
        (torch.bfloat16, 5e-4, "dead-zone"),
        (torch.float16, 1e-3, "additive"),
        (torch.float16, 3e-4, "dead-zone"),
        (torch.float16, 1e-4, "dead-zone"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_an_update_of_rank_8_is_found_at_every_size_down_to_a_tenth_of_the_grid(dtype, ratio, regime, seed):
    tuned, difference = fine_tuned(dtype, ratio=ratio, seed=seed)
    found = difference_noise(difference, spectrum(difference), tuned, generator=seeded(5))
    assert (found.signal_rank, found.regime) == (8, regime)
    assert found.zero_fraction == pytest.approx(float((difference == 0).double().mean()), abs=1e-12)


@pytest.mark.parametrize("shape", [(600, 200), (200, 600)], ids=str)
@pytest.mark.parametrize("ratio", [1e-2, 1e-3])
def test_the_rank_of_an_update_is_found_in_wide_and_tall_matrices_and_partial_spectra(shape, ratio):
    tuned, difference = fine_tuned(torch.bfloat16, ratio=ratio, shape=shape, rank=4)
    for known in (spectrum(difference), partial_spectrum(difference, rank=16, generator=seeded())):
        assert difference_noise(difference, known, tuned, generator=seeded(5)).signal_rank == 4


def weights_of(kind, generator):
    uniform = torch.rand(200, 200, generator=generator)
    return {
        "gaussian": lambda: STD * torch.randn(200, 200, generator=generator),
        "one binade": lambda: 1.1 + 0.8 * uniform,  # the grid is the same for every entry
        "uneven rows": lambda: torch.randn(200, 200, generator=generator) * torch.logspace(-2, 0, 200)[:, None],
    }[kind]()


@pytest.mark.parametrize("kind", ["gaussian", "one binade", "uneven rows"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_alone_is_never_signal(kind, dtype):
    for seed in range(30):
        exact = weights_of(kind, seeded(seed))
        difference = exact.to(dtype).float() - exact
        found = difference_noise(difference, spectrum(difference), exact.to(dtype))
        assert (found.signal_rank, found.regime) == (0, "additive")
        if kind != "uneven rows":
            assert found.edge < 1.25 * float(spectrum(difference).spectral_norm)


def test_two_equal_checkpoints_differ_by_nothing():
    tuned = torch.randn(50, 40, generator=seeded()).to(torch.bfloat16)
    difference = torch.zeros(50, 40)
    found = difference_noise(difference, spectrum(difference), tuned)
    assert (found.signal_rank, found.zero_fraction) == (0, 1.0)


def test_one_seed_gives_one_edge():
    tuned, difference = fine_tuned(torch.bfloat16, ratio=1e-3)
    known = spectrum(difference)
    first, again = (difference_noise(difference, known, tuned, generator=seeded(2)) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_floor_is_the_norm_of_the_rounding_that_happened(dtype):
    exact = STD * torch.randn(400, 300, generator=seeded(), dtype=torch.float64)
    rounded = exact.to(dtype)
    happened = float(torch.linalg.norm(rounded.double() - exact))
    assert rounding_variance(rounded).floor == pytest.approx(happened, rel=0.02)


def test_the_floor_holds_below_the_smallest_normal_number():
    exact = 1e-5 * torch.randn(400, 300, generator=seeded())  # float16 is normal from 6e-5 on
    rounded = exact.to(torch.float16)
    happened = float(torch.linalg.norm(rounded.float() - exact))
    assert rounding_variance(rounded).floor == pytest.approx(happened, rel=0.02)


def test_variances_are_summed_by_row_and_by_column():
    weight = torch.tensor([[1.0, 1.5, 2.0], [-4.0, -7.99, 0.5]])
    units = torch.tensor([[1.0, 1.0, 2.0], [4.0, 4.0, 0.5]], dtype=torch.float64) * 2**-23
    found = rounding_variance(weight)
    torch.testing.assert_close(found.rows, (units**2 / 12).sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.columns, (units**2 / 12).sum(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(300, 300), (600, 150), (150, 600), (30, 20)], ids=str)
def test_a_random_matrix_has_no_signal(shape):
    for seed in range(15):
        weight = torch.randn(shape, generator=seeded(seed))
        found = bulk_noise(weight, spectrum(weight))
        assert (found.signal_rank, found.regime) == (0, "bulk")
        scatter = 1 + min(shape) ** (-2 / 3)
        assert found.edge == pytest.approx((math.sqrt(shape[0]) + math.sqrt(shape[1])) * scatter, rel=0.1)


@pytest.mark.parametrize("shape", [(400, 400), (600, 200), (200, 600)], ids=str)
@pytest.mark.parametrize("spikes", [1, 5, 20])
@pytest.mark.parametrize("partly", [False, True], ids=["whole", "partial"])
def test_spikes_above_the_edge_are_counted(shape, spikes, partly):
    edge = math.sqrt(shape[0]) + math.sqrt(shape[1])
    noise = torch.randn(shape, generator=seeded(1))
    weight = planted(torch.linspace(3, 1.5, spikes) * edge, shape, seed=2).float() + noise
    known = partial_spectrum(weight, rank=32, generator=seeded()) if partly else spectrum(weight)
    assert bulk_noise(weight, known).signal_rank == spikes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [1, 8, 40])
@pytest.mark.parametrize("shape", [(200, 200), (300, 120)], ids=str)
def test_without_noise_the_signal_is_the_rank(dtype, rank, shape):
    weight = planted(torch.linspace(2, 1, rank), shape, seed=rank).to(dtype)
    assert bulk_noise(weight, spectrum(weight)).signal_rank == rank


@pytest.mark.parametrize("shape", [(20, 30), (1, 5), (5, 1), (0, 5)], ids=str)
def test_nothing_and_zero_have_no_signal(shape):
    weight = torch.zeros(shape)
    assert bulk_noise(weight, spectrum(weight)).signal_rank == 0
    assert difference_noise(weight, spectrum(weight), weight).signal_rank == 0


def test_entries_that_are_exactly_zero_are_counted():
    weight = torch.tensor([[0.0, -0.0, 1.0], [2.0, 0.0, 1e-40]])
    assert zero_fraction(weight) == pytest.approx(0.5)
    assert zero_fraction(torch.ones(3, 3)) == 0.0


@pytest.mark.parametrize("ratio", [1e-2, 1e-3])
def test_slabs_give_the_same_estimate_as_the_matrix_at_once(ratio):
    tuned, difference = fine_tuned(torch.bfloat16, ratio=ratio, shape=(200, 160))
    known = spectrum(difference)
    whole = difference_noise(difference, known, tuned, generator=seeded(3))
    slabs = difference_noise(Streamed(difference, rows=17), known, Streamed(tuned, rows=17), generator=seeded(3))
    assert slabs.signal_rank == whole.signal_rank == 8
    assert slabs.edge == pytest.approx(whole.edge, rel=0.02)  # other slabs draw other signs
    assert bulk_noise(Streamed(tuned, rows=9), spectrum(tuned)) == bulk_noise(tuned, spectrum(tuned))


@pytest.mark.parametrize("shape", [(256, 192), (1200, 480)], ids=str)
def test_a_planted_rank_of_3_is_found_in_bfloat16_at_every_size_of_the_update(shape):
    trials, found = 50, []
    for seed in range(trials):
        generator = torch.Generator().manual_seed(seed)
        size = 3e-3 * 10 ** (seed / (trials - 1))
        base = torch.randn(shape, generator=generator).to(torch.bfloat16).float()
        update = torch.randn(shape[0], 3, generator=generator) @ torch.randn(3, shape[1], generator=generator)
        tuned = (base + size * update / update.square().mean().sqrt()).to(torch.bfloat16)
        change = tuned.float() - base
        found.append(difference_noise(change, spectrum(change), tuned, generator=generator).signal_rank)
    assert max(found) <= 6
    assert sum(rank == 3 for rank in found) >= 0.95 * trials


def test_the_rounding_of_a_product_is_within_its_bound():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(60, 4, generator=generator), torch.randn(4, 50, generator=generator)
    B, A = left.to(torch.bfloat16), right.to(torch.bfloat16)
    error = torch.linalg.matrix_norm(B.double() @ A.double() - left.double() @ right.double(), 2)
    assert 0 < float(error) < product_noise(B, A) < 20 * float(error)
