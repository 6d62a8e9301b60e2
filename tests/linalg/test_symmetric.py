"""Eigenvalues of symmetric matrices: the largest first, the threads as they were."""

import math

import pytest
import torch

from eckart.linalg.symmetric import eigensystem, eigenvalues

from .planting import orthonormal, seeded


@pytest.mark.parametrize("side", [0, 1, 2, 60, 300])
def test_only_the_upper_triangle_is_read(side):
    vectors = orthonormal(side, side, seeded()) if side else torch.zeros(0, 0, dtype=torch.float64)
    values = torch.linspace(3, -1, side, dtype=torch.float64)
    matrix = (vectors * values) @ vectors.T
    below = matrix.triu() + 7 * torch.ones_like(matrix).tril(-1)
    torch.testing.assert_close(eigenvalues(below), values, rtol=0, atol=1e-13)
    found, columns = eigensystem(below)
    torch.testing.assert_close(found, values, rtol=0, atol=1e-13)
    torch.testing.assert_close((columns * found) @ columns.T, matrix, rtol=0, atol=1e-13)


@pytest.mark.parametrize("broken", [False, True], ids=["well", "with an error"])
def test_the_thread_count_is_left_as_it_was(broken):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        if broken:
            with pytest.raises(RuntimeError):
                eigenvalues(torch.full((3, 3), math.nan, dtype=torch.float64))
        else:
            eigenvalues(torch.eye(5, dtype=torch.float64))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
