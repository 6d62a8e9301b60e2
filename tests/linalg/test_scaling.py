"""The result for 2^k·W is 2^k times the result for W, bit for bit, wherever its numbers have room for it."""

import math

import pytest
import torch

from eckart.errors import EckartError
from eckart.linalg import (
    allocate,
    bulk_noise,
    difference_noise,
    nf4,
    partial_spectrum,
    partial_svd,
    rounding_variance,
    spectrum,
    truncated_svd,
)
from eckart.linalg.intruder import intruders
from eckart.linalg.scaling import frobenius_norm, shifted
from eckart.linalg.slabs import as_slabs

from .planting import Streamed, dense_tails, dense_values, one_to, planted, seeded
from .test_certificate import assert_nothing_false_is_stated

# Exponents that leave an entry near 1 in the normal range of the dtype, with its digits.
EXPONENTS = {
    torch.float64: [-900, -530, -250, 250, 500, 980],
    torch.float32: [-85, -60, 60, 90],
    torch.bfloat16: [-85, 90],
}
CASES = [(dtype, exponent) for dtype, exponents in EXPONENTS.items() for exponent in exponents]
scaled_by = pytest.mark.parametrize(("dtype", "exponent"), CASES, ids=str)


def outlier(shape):
    """Ones of either sign, and one value that is 10²³ times as large."""
    weight = torch.randn(shape, generator=seeded(3), dtype=torch.float64).sign()
    weight[0, 0] = 1e23
    return weight * 2.0**-40


KINDS = {
    "square": lambda: planted(one_to(48) ** -0.5, (48, 48)),
    "tall": lambda: planted(one_to(24) ** -1, (150, 24)),
    "wide": lambda: planted(one_to(24) ** -1, (24, 150)),
    "nearly singular": lambda: planted(torch.logspace(0, -9, 20, dtype=torch.float64), (40, 30)),
    "rank 5, large enough for Krylov": lambda: planted(torch.linspace(2, 1, 5), (280, 300)),
    "slowly falling, large enough for Krylov": lambda: planted(one_to(280) ** -0.5, (300, 280)),
    "one outlier": lambda: outlier((40, 50)),
    "one outlier, large enough for Krylov": lambda: outlier((280, 300)),
    "one row": lambda: torch.linspace(1, 2, 30, dtype=torch.float64)[None],
    "one column": lambda: torch.linspace(1, 2, 30, dtype=torch.float64)[:, None],
    "one value": lambda: torch.full((1, 1), 1.5, dtype=torch.float64),
}
of_every_kind = pytest.mark.parametrize("kind", KINDS)


def statistics(known):
    """Everything about a spectrum that does not depend on scale."""
    ranks = [known.rank_for_error(error) for error in (0.5, 0.1, 1e-3)]
    ranks += [known.rank_for_energy(energy) for energy in (0.9, 0.999, 1.0)]
    shares = known.stable_rank, known.effective_rank, known.participation_ratio, known.numerical_rank
    errors = known.errors().tolist(), known.cumulative_energy().tolist(), known.error_bounds(3)
    return ranks, shares, errors


def assert_scaled(found, plain, exponent):
    assert torch.equal(found.singular_values, shifted(plain.singular_values, exponent))
    assert found.fro_norm == math.ldexp(plain.fro_norm, exponent)
    assert statistics(found) == statistics(plain)
    if plain.tail is not None:
        assert found.tail.norm == math.ldexp(plain.tail.norm, exponent)
        assert torch.equal(shifted(found.tail.energy_upper, 2 * (found.exponent - exponent)), plain.tail.energy_upper)


@of_every_kind
@scaled_by
def test_spectra_and_triplets_scale_exactly(kind, dtype, exponent):
    weight = KINDS[kind]().to(dtype)
    larger = shifted(weight, exponent)
    assert_scaled(spectrum(larger), spectrum(weight), exponent)
    rank = min(8, *weight.shape)
    for method in (partial_svd, truncated_svd):
        plain, found = (method(each, rank=rank, generator=seeded()) for each in (weight, larger))
        assert torch.equal(found.U, plain.U)
        assert torch.equal(found.Vh, plain.Vh)
        assert torch.equal(found.S, shifted(plain.S, exponent))
    assert_scaled(found.spectrum, plain.spectrum, exponent)
    plain, found = (partial_spectrum(each, rank=rank, generator=seeded()) for each in (weight, larger))
    assert_scaled(found, plain, exponent)


@of_every_kind
@pytest.mark.parametrize("dtype", EXPONENTS, ids=str)
def test_nothing_stated_about_the_rest_is_false_before_it_is_scaled(kind, dtype):
    weight = KINDS[kind]().to(dtype)
    for rank in {1, min(8, *weight.shape)}:
        known = partial_spectrum(weight, rank=rank, generator=seeded())
        assert_nothing_false_is_stated(known, dense_values(weight))


@pytest.mark.parametrize("kind", ["square", "one outlier", "one row"])
@scaled_by
def test_noise_intruders_and_budgets_scale_exactly(kind, dtype, exponent):
    weight = KINDS[kind]().to(dtype)
    larger = shifted(weight, exponent)
    other = weight.roll(1, 0)
    known = [spectrum(each) for each in (weight, larger)]
    for noise in (bulk_noise, lambda it, its: difference_noise(it, its, it, generator=seeded(2))):
        plain, found = (noise(each, its) for each, its in zip((weight, larger), known, strict=True))
        assert (found.signal_rank, found.regime) == (plain.signal_rank, plain.regime)
        assert found.edge == math.ldexp(plain.edge, exponent)
        assert found.rounding_floor == math.ldexp(plain.rounding_floor, exponent)
    plain, found = intruders(weight, other), intruders(larger, shifted(other, exponent))
    assert torch.equal(found.upper, plain.upper)
    assert torch.equal(found.lower, plain.lower)
    budgets = [allocate({"a": its, "b": its}, budget_params=5 * sum(weight.shape)) for its in known]
    assert (budgets[0].ranks, budgets[0].guarantee) == (budgets[1].ranks, budgets[1].guarantee)


def test_a_value_whose_square_vanishes_next_to_the_largest_still_earns_its_rank():
    spectra = {"huge": spectrum([[1e300, 0.0], [0.0, 1e299]]), "small": spectrum([[1e-10, 0.0], [0.0, 1e-9]])}
    assert allocate(spectra, budget_params=12).ranks == {"huge": 2, "small": 1}


@pytest.mark.parametrize("smallest", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_subnormal_values_count(smallest):
    least = torch.finfo(smallest).smallest_normal * torch.finfo(smallest).eps
    counts = torch.randint(-9, 10, (30, 20), generator=seeded(), dtype=torch.int64).double()
    weight = (counts * least).to(smallest)
    assert bool((weight.double() == counts * least).all())
    plain, found = spectrum(counts), spectrum(weight)
    torch.testing.assert_close(found.singular_values, plain.singular_values * least, rtol=1e-12, atol=0)
    svd = truncated_svd(weight, rank=4, generator=seeded())
    torch.testing.assert_close(svd.S, plain.singular_values[:4] * least, rtol=1e-5, atol=0)
    assert rounding_variance(weight).floor == pytest.approx(least * math.sqrt(600 / 12), rel=1e-6)


def test_a_subnormal_float64_is_right_to_its_last_bit():
    assert spectrum([[3 * 5e-324, 0.0], [0.0, 2 * 5e-324]]).singular_values.tolist() == [3 * 5e-324, 2 * 5e-324]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(40, 30), (300, 280)], ids=str)
def test_the_largest_values_of_a_dtype_are_decomposed(dtype, shape):
    signs = torch.randn(shape, generator=seeded(), dtype=torch.float64).sign()
    largest = torch.finfo(dtype).max if dtype != torch.float64 else 1e305
    weight = (signs * largest).to(dtype)
    expected = spectrum(signs).singular_values
    torch.testing.assert_close(spectrum(weight).singular_values / largest, expected, rtol=1e-10, atol=0)
    svd = truncated_svd(weight, rank=5, generator=seeded())
    missed = svd.spectrum.error_bounds(5)
    best = math.sqrt(float(dense_tails(expected)[5]) / float(dense_tails(expected)[0]))
    assert missed[0] <= best * (1 + 1e-9)
    assert missed[1] >= best * (1 - 1e-9)
    assert svd.spectrum.fro_norm / largest == pytest.approx(math.sqrt(signs.numel()), rel=1e-12)


@pytest.mark.parametrize("of", [spectrum, lambda weight: truncated_svd(weight, rank=1)])
def test_a_norm_that_no_float64_holds_is_refused_for_what_it_is(of):
    with pytest.raises(EckartError, match=r"Frobenius norm above 1\.8e308.*divide it by a power of two"):
        of(torch.full((3, 3), 1.7e308, dtype=torch.float64))


@pytest.mark.parametrize("exponent", [-1000, -300, 300, 1000])
def test_a_streamed_matrix_scales_too(exponent):
    weight = planted(one_to(20) ** -1, (60, 20))
    found, plain = (frobenius_norm(Streamed(each, rows=7)) for each in (shifted(weight, exponent), weight))
    assert found == pytest.approx(math.ldexp(plain, exponent), rel=1e-14)
    streamed, resident = (spectrum(it) for it in (Streamed(shifted(weight, exponent), rows=7), as_slabs(weight)))
    torch.testing.assert_close(shifted(streamed.singular_values, -exponent), resident.singular_values)


@pytest.mark.parametrize("exponent", [-90, 90])
def test_codes_of_four_bits_do_not_depend_on_scale(exponent):
    weight = torch.randn(40, 64, generator=seeded())
    plain, found = nf4.quantize(weight), nf4.quantize(shifted(weight, exponent))
    assert torch.equal(found.codes, plain.codes)
    assert torch.equal(found.absmax, shifted(plain.absmax, exponent))
