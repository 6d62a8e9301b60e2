"""Products B·A from their factors, against the dense product in float64."""

import jaxtyping
import pytest
import torch

from eckart.errors import EckartError
from eckart.linalg import LowRank, spectrum

from .planting import orthonormal, seeded

CASES = {
    "tall": (40, 30, 5),
    "wide": (30, 40, 5),
    "rank 1": (12, 9, 1),
    "full rank": (12, 9, 9),
    "rank above both sides": (9, 12, 30),
    "one row": (1, 12, 3),
    "one column": (12, 1, 3),
    "rank 0": (8, 6, 0),
}


def drawn(shape, seed=0, dtype=torch.float64, scale=1.0):
    rows, columns, rank = shape
    generator = seeded(seed)
    B = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    A = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    return LowRank((B * scale).to(dtype), (A / scale).to(dtype))


def dense(product):
    return product.lora_B.double() @ product.lora_A.double()


def factor_norms(product):
    """‖B‖‖A‖: what rounding in the algebra is measured by."""
    return float(torch.linalg.norm(product.lora_B.double()) * torch.linalg.norm(product.lora_A.double()))


def deficient():
    """Rank 5 in name, 2 in truth: repeated columns."""
    product = drawn((30, 20, 5))
    return LowRank(product.lora_B[:, [0, 0, 1, 1, 1]], product.lora_A)


def zero_start():
    """An adapter before its first step: B is zero."""
    return LowRank(torch.zeros(20, 4), torch.randn(4, 30, generator=seeded()))


PRODUCTS = {
    **{name: drawn(shape) for name, shape in CASES.items()},
    "float32": drawn((40, 30, 5), dtype=torch.float32),
    "bfloat16": drawn((40, 30, 5), dtype=torch.bfloat16),
    "uneven factors": drawn((40, 30, 5), scale=1e6),
    "uneven the other way": drawn((40, 30, 5), scale=1e-6),
    "rank-deficient B": deficient(),
    "zero B": zero_start(),
}


@pytest.fixture(params=PRODUCTS)
def product(request):
    return PRODUCTS[request.param]


def test_the_svd_is_that_of_the_dense_product(product):
    U, S, Vh = product.svd()
    expected = dense(product)
    scale = factor_norms(product) + 1e-300
    assert float(torch.linalg.norm((U * S) @ Vh - expected)) < 1e-14 * scale
    assert len(S) == min(product.rank, *product.shape)
    eye = torch.eye(len(S), dtype=torch.float64)
    torch.testing.assert_close(U.T @ U, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(Vh @ Vh.T, eye, rtol=0, atol=1e-13)


def test_the_spectrum_is_complete_and_that_of_the_dense_product(product):
    found = product.spectrum()
    expected = torch.linalg.svdvals(dense(product))
    scale = factor_norms(product)
    assert found.complete
    assert found.shape == product.shape
    assert found.dtype == product.lora_B.dtype
    torch.testing.assert_close(found.singular_values, expected[: product.rank], rtol=0, atol=1e-14 * scale)
    assert product.fro_norm == pytest.approx(float(torch.linalg.norm(dense(product))), abs=1e-14 * scale)
    assert found.error_bounds(min(product.shape)) == (0.0, 0.0)


@pytest.mark.parametrize("rank", [1, 2, 4, 100])
def test_truncating_leaves_exactly_the_tail_of_the_spectrum(product, rank):
    found = product.truncate(rank)
    left = float(torch.linalg.norm(dense(product) - dense(found)))
    assert found.rank == min(rank, product.rank, *product.shape)
    scale = factor_norms(product)
    assert left == pytest.approx(float(torch.linalg.norm(product.spectrum().singular_values[rank:])), abs=1e-13 * scale)


def test_truncating_balances_the_factors():
    found = drawn((40, 30, 5), scale=1e6).truncate(3)
    torch.testing.assert_close(
        torch.linalg.vector_norm(found.lora_B, dim=0), torch.linalg.vector_norm(found.lora_A, dim=1), rtol=1e-12, atol=0
    )


def test_algebra_on_factors_is_algebra_on_products(product):
    rows, columns = product.shape
    other = drawn((rows, columns, 3), seed=9)
    expected, second = dense(product), dense(other)
    atol = (
        1e-14 * float(torch.linalg.norm(product.lora_B.double()) * torch.linalg.norm(product.lora_A.double())) + 1e-14
    )
    for found, wanted in (
        (product + other, expected + second),
        (product - other, expected - second),
        (other - product, second - expected),
        (-product, -expected),
        (product * 0.5, 0.5 * expected),
        (-2.0 * product, -2 * expected),
        (0.0 * product, 0 * expected),
    ):
        torch.testing.assert_close(dense(found), wanted, rtol=1e-14, atol=10 * atol)
    assert (product + other).rank == product.rank + 3
    assert product.inner(other) == pytest.approx(float((expected * second).sum()), abs=100 * atol)
    assert product.inner(product) == pytest.approx(product.fro_norm**2, rel=1e-9, abs=1e-20)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_product_less_itself_is_zero_to_the_rounding_of_its_factors(scale):
    product = drawn((50, 40, 6), dtype=torch.float32) * scale
    assert (product - product).fro_norm < 1e-14 * factor_norms(product)


@pytest.mark.parametrize("change", [0.0, 1e-9, 1e-3, 1.0])
@pytest.mark.parametrize("scale", [1e-180, 1.0, 1e90])
def test_the_distance_is_the_norm_of_the_difference_near_and_far(change, scale):
    one, noise = drawn((40, 30, 5)), drawn((40, 30, 2), seed=1)
    other = one + noise * change
    distance = (one * scale).distance(other * scale) / scale
    rounding = 1e-14 * factor_norms(one)
    assert distance == pytest.approx(change * noise.fro_norm, rel=1e-10, abs=rounding)


def test_a_product_is_found_again_under_any_change_of_gauge():
    product = drawn((50, 40, 6))
    G = orthonormal(6, 6, seeded(1)) * torch.logspace(-3, 3, 6, dtype=torch.float64)
    moved = LowRank(product.lora_B @ G, torch.linalg.solve(G, product.lora_A))
    torch.testing.assert_close(moved.spectrum().singular_values, product.spectrum().singular_values, rtol=1e-9, atol=0)
    assert moved.inner(product) == pytest.approx(product.fro_norm**2, rel=1e-9)
    torch.testing.assert_close(dense(moved.truncate(3)), dense(product.truncate(3)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("spread", [0, -2, -4, -8, -13])
def test_singular_vectors_are_orthonormal_however_far_the_factors_spread(spread):
    generator = torch.Generator().manual_seed(1)
    B = torch.randn(300, 24, generator=generator, dtype=torch.float64) * torch.logspace(0, spread, 24).double()
    A = torch.randn(24, 200, generator=generator, dtype=torch.float64)
    U, S, Vh = LowRank(B, A).svd()
    identity = torch.eye(24, dtype=torch.float64)
    assert float((U.T @ U - identity).abs().max()) < 2e-13
    assert float((Vh @ Vh.T - identity).abs().max()) < 2e-13
    assert float(((U * S) @ Vh - B @ A).norm() / S[0]) < 1e-13
    assert float((S - torch.linalg.svdvals(B @ A)[:24]).abs().max() / S[0]) < 1e-12


def test_the_spectrum_of_factors_is_that_of_the_matrix_they_make():
    product = drawn((60, 50, 7))
    whole = spectrum(dense(product))
    torch.testing.assert_close(product.spectrum().singular_values, whole.singular_values[:7], rtol=1e-12, atol=0)
    for error in (0.5, 0.2, 0.05):
        assert product.spectrum().rank_for_error(error) == whole.rank_for_error(error)


def test_a_wide_range_of_singular_values_survives_the_factors():
    values = torch.logspace(0, -12, 6, dtype=torch.float64)
    generator = seeded()
    product = LowRank.from_svd(orthonormal(40, 6, generator), values, orthonormal(30, 6, generator).T)
    torch.testing.assert_close(product.spectrum().singular_values, values, rtol=1e-3, atol=0)


def test_sums_of_unlike_dtypes_lose_neither():
    narrow, wide = drawn((8, 6, 2), dtype=torch.bfloat16), drawn((8, 6, 2), seed=1, dtype=torch.float64)
    torch.testing.assert_close(dense(narrow + wide), dense(narrow) + dense(wide), rtol=0, atol=1e-14)
    assert (narrow + wide).lora_A.dtype == torch.float64


def test_the_dense_product_keeps_the_dtype_of_its_factors():
    product = drawn((8, 6, 2), dtype=torch.float32)
    assert product.dense().dtype == torch.float32
    torch.testing.assert_close(product.dense().double(), dense(product), rtol=1e-5, atol=1e-5)


def test_factors_that_are_trained_are_read_as_values():
    product = LowRank(torch.nn.Parameter(torch.ones(4, 2)), torch.nn.Parameter(torch.ones(2, 3)))
    assert not product.spectrum().singular_values.requires_grad
    assert product.fro_norm == pytest.approx(48**0.5)
    assert product.inner(product) == pytest.approx(48)


def test_no_rank_below_one_can_be_kept():
    with pytest.raises(EckartError, match="`rank` must be at least 1, got 0"):
        drawn((4, 3, 2)).truncate(0)


@pytest.mark.parametrize(("B", "A"), [((4, 2), (3, 5)), ((4, 2), (5, 2)), ((0, 3), (2, 4)), ((4,), (4, 5))])
def test_factors_that_do_not_meet_are_refused(B, A, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as where no one checks shapes on every call
    with pytest.raises(EckartError, match=r"`lora_B` must be \(out_features, rank\) and `lora_A` \(rank"):
        LowRank(torch.ones(B), torch.ones(A))


@pytest.mark.parametrize("operation", [LowRank.inner, LowRank.__add__, LowRank.__sub__])
def test_products_of_unlike_shapes_do_not_mix(operation):
    with pytest.raises(EckartError, match=r"the same shape, got \(4, 3\) and \(3, 4\)"):
        operation(drawn((4, 3, 2)), drawn((3, 4, 2)))
