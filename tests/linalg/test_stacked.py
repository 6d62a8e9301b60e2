"""Batches of products decomposed together, against dense float64 LAPACK one by one."""

import pytest
import torch

from eckart.linalg import overlap, rounding_floor, stacked_svd

from .planting import orthonormal, seeded
from .test_low_rank import PRODUCTS, dense, factor_norms


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_batch_has_the_svd_of_each_product(name):
    first = PRODUCTS[name]
    # Beside a copy of another size, which must disturb neither.
    products = [first, first * -3.0]
    U, S, Vh = stacked_svd(torch.stack([p.lora_B for p in products]), torch.stack([p.lora_A for p in products]))
    for place, product in enumerate(products):
        limit = 1e-13 * max(factor_norms(product), 1e-300)
        k = S.shape[1]
        torch.testing.assert_close(S[place], torch.linalg.svdvals(dense(product))[:k], rtol=0, atol=limit)
        torch.testing.assert_close(U[place] * S[place] @ Vh[place], dense(product), rtol=0, atol=limit)
        eye = torch.eye(k, dtype=torch.float64)
        torch.testing.assert_close(U[place].T @ U[place], eye, rtol=0, atol=1e-12)
        torch.testing.assert_close(Vh[place] @ Vh[place].T, eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_what_cancels_is_below_the_rounding_floor_and_what_does_not_is_above(scale):
    generator = seeded()
    B, A = torch.randn(3, 60, 8, generator=generator), torch.randn(3, 8, 40, generator=generator)
    moved = B * (1 + 1e-6 * torch.arange(3.0)[:, None, None])  # by nothing, one millionth, two
    left, right = torch.cat([moved, -B], dim=2) * scale, torch.cat([A, A], dim=1)
    above = stacked_svd(left, right)[1] > rounding_floor(left, right)[:, None]
    assert not above[0].any()
    assert above[1:, 0].all()


def test_the_overlap_of_a_batch_is_that_of_its_members():
    generator = seeded(5)
    first, second = (torch.stack([orthonormal(15, k, generator) for _ in range(4)]) for k in (3, 5))
    found = overlap(first, second)
    for place in range(4):
        alone = overlap(first[place], second[place])
        torch.testing.assert_close(found.phi[place], alone.phi, rtol=1e-13, atol=0)
        assert torch.equal(found.chance, alone.chance)
