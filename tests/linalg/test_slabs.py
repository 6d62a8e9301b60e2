"""One way to read every weight: blocks of rows that come together to the whole."""

import pytest
import torch

from eckart.linalg import InMemory, RowSlabs, as_slabs
from eckart.linalg.scaling import frobenius_norm
from eckart.linalg.slabs import compute_dtype, materialize, rows_per_slab

from .planting import Streamed, seeded


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (1, 9), (9, 1), (0, 4), (4, 0)], ids=str)
def test_slabs_come_together_to_the_matrix(dtype, shape, monkeypatch):
    monkeypatch.setattr("eckart.linalg.slabs.SLAB_BYTES", 4 * 5 * 2)
    weight = torch.randn(shape, generator=seeded()).to(dtype)
    matrix = as_slabs(weight)
    assert isinstance(matrix, RowSlabs)
    for _ in range(2):  # as often as it is asked
        assert torch.equal(torch.cat(list(matrix.slabs())), weight)
    assert matrix.shape == shape
    assert matrix.dtype == dtype


def test_narrow_dtypes_come_in_slabs_small_enough_to_upcast(monkeypatch):
    monkeypatch.setattr("eckart.linalg.slabs.SLAB_BYTES", 4 * 6 * 2)
    rows = [len(slab) for slab in InMemory(torch.ones(7, 6, dtype=torch.bfloat16)).slabs()]
    assert rows == [2, 2, 2, 1]
    assert rows_per_slab(10**9) == 1


def test_a_slab_of_a_matrix_in_memory_is_a_view():
    weight = torch.ones(4, 3)
    assert next(InMemory(weight).slabs()).data_ptr() == weight.data_ptr()


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_products_are_taken_in_float32_or_better(stored, computed):
    weight = torch.randn(9, 4, generator=seeded()).to(stored)
    for matrix in (as_slabs(weight), Streamed(weight, rows=2)):
        assert compute_dtype(matrix) == computed
        whole = materialize(matrix)
        assert whole.dtype == computed
        assert torch.equal(whole, weight.to(computed))
        assert frobenius_norm(matrix) ** 2 == pytest.approx(float(weight.double().square().sum()), rel=1e-14)


def test_what_already_is_slabs_stays_what_it_is():
    matrix = Streamed(torch.ones(3, 3), rows=2)
    assert as_slabs(matrix) is matrix
