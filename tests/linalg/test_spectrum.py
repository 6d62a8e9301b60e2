"""Whole spectra against float64 LAPACK on what is stored."""

import math

import jaxtyping
import numpy as np
import pytest
import torch

from eckart.errors import EckartError
from eckart.linalg import spectrum
from eckart.linalg.scaling import frobenius_norm
from eckart.linalg.slabs import as_slabs

from .planting import SPECTRA, Streamed, dense_values, planted, seeded

SHAPES = [(120, 120), (300, 120), (120, 300), (1, 50), (50, 1), (1, 1)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
STATED = 2e-5  # relative accuracy of each singular value, as the docstring states it


@pytest.mark.parametrize("condition", [1e2, 1e3, 1e4, 1e5, 2e5, 3e5, 1e6, 1e7, 1e8])
@pytest.mark.parametrize("shape", [(200, 200), (500, 200), (200, 500)])
@pytest.mark.parametrize("kind", ["geometric", "one small"])
def test_every_singular_value_is_right_to_the_stated_accuracy(condition, shape, kind):
    values = torch.logspace(0, -math.log10(condition), 200, dtype=torch.float64)
    if kind == "one small":  # the sum of many large values weighs heaviest on a small one
        values[:-1] = 1.0
    weight = planted(values, shape)
    oracle = dense_values(weight)
    found = spectrum(weight)
    assert found.complete
    assert float(((found.singular_values - oracle) / oracle).abs().max()) < STATED
    assert found.fro_norm == pytest.approx(float(torch.linalg.norm(weight)), rel=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", SPECTRA)
def test_the_spectrum_is_that_of_the_stored_values_in_every_shape_and_dtype(kind, shape, dtype):
    weight = planted(SPECTRA[kind](min(shape)), shape).to(dtype)
    oracle = dense_values(weight)
    found = spectrum(weight)
    assert found.shape == shape
    assert found.dtype == dtype
    assert found.singular_values.dtype == torch.float64
    # Below ε₆₄·σ₁ no method knows a value.
    torch.testing.assert_close(found.singular_values, oracle, rtol=STATED, atol=1e-14 * float(oracle[0]))
    assert bool((found.singular_values.diff() <= 0).all())


def test_a_float32_spectrum_is_more_accurate_than_float32_lapack():
    weight = planted(torch.logspace(0, -5, 150, dtype=torch.float64), (150, 150)).to(torch.float32)
    oracle = dense_values(weight)
    ours = ((spectrum(weight).singular_values - oracle) / oracle).abs().max()
    theirs = ((torch.linalg.svdvals(weight).to(torch.float64) - oracle) / oracle).abs().max()
    assert float(ours) < 1e-3 * float(theirs)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_an_empty_matrix_has_an_empty_spectrum(shape):
    found = spectrum(torch.zeros(shape))
    assert found.singular_values.numel() == 0
    assert found.fro_norm == 0.0


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_scaling_a_matrix_scales_its_spectrum(scale):
    weight = torch.randn(40, 60, generator=seeded())
    expected = spectrum(weight).singular_values * scale
    torch.testing.assert_close(spectrum(weight.to(torch.float64) * scale).singular_values, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_a_value_that_is_not_finite_is_refused_and_counted(bad, shape):
    weight = torch.ones(shape)
    weight[1, 2] = weight[3, 0] = bad
    with pytest.raises(EckartError, match="contains 2 values that are NaN or Inf"):
        spectrum(weight)


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("shape", [(400, 60), (60, 400), (128, 128)], ids=str)
@pytest.mark.parametrize("smallest", [1e-2, 1e-8], ids=["by Gram", "by QR"])
def test_a_streamed_matrix_has_the_spectrum_of_the_same_in_memory(rows, shape, smallest, monkeypatch):
    monkeypatch.setattr("eckart.linalg.full_spectrum.BLOCK_BYTES", 8 * 400 * 20)  # matrices come in several blocks
    values = torch.logspace(0, math.log10(smallest), min(shape), dtype=torch.float64)
    weight = planted(values, shape)
    streamed = spectrum(Streamed(weight, rows=rows))
    torch.testing.assert_close(streamed.singular_values, dense_values(weight), rtol=STATED, atol=0)
    assert streamed.fro_norm == pytest.approx(spectrum(weight).fro_norm, rel=1e-14)


@pytest.mark.parametrize("shape", [(2000, 30), (30, 2000)], ids=str)
def test_no_more_than_two_slabs_are_held_at_once(shape):
    source = Streamed(torch.randn(shape, generator=seeded()), rows=5)
    spectrum(source)
    assert source.most_alive <= 2


def test_a_tall_matrix_is_read_once_and_a_nearly_singular_one_twice():
    regular = Streamed(planted(torch.linspace(2, 1, 20), (100, 20)), rows=30)
    singular = Streamed(planted(torch.linspace(2, 1, 19), (100, 20)), rows=30)
    spectrum(regular)
    spectrum(singular)
    assert (regular.readings, singular.readings) == (1, 2)


READ_ONLY = np.random.default_rng(3).standard_normal((9, 6))
READ_ONLY.setflags(write=False)


@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).standard_normal((30, 20)),
        np.random.default_rng(1).standard_normal((30, 20)).astype(np.float32),
        np.random.default_rng(1).standard_normal((30, 20)).astype(np.float16),
        np.random.default_rng(2).standard_normal((60, 60))[::3, 1:40:2],
        np.random.default_rng(2).standard_normal((20, 30)).T,
        np.random.default_rng(2).standard_normal((20, 30))[::-1],
        np.random.default_rng(2).standard_normal((20, 30)).astype(">f4"),
        np.broadcast_to(np.float32(1.5), (7, 8)),
        READ_ONLY,
    ],
    ids=["f64", "f32", "f16", "strided", "transposed", "reversed", "big-endian", "broadcast", "read-only"],
)
def test_numpy_arrays_of_every_layout_are_taken(array):
    expected = np.linalg.svd(array.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(spectrum(array).singular_values, expected, rtol=1e-10, atol=1e-13)


def test_a_strided_tensor_is_taken_and_left_as_it_was():
    weight = torch.randn(60, 40, generator=seeded())[::2, ::3].T
    before = weight.clone()
    torch.testing.assert_close(spectrum(weight).singular_values, dense_values(weight), rtol=1e-10, atol=0)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(3),
        torch.ones(2, 3, 4),
        torch.ones(3, 3, dtype=torch.int64),
        torch.ones(3, 3, dtype=torch.complex64),
        np.ones((3, 3), dtype=bool),
    ],
    ids=["vector", "cube", "integers", "complex", "booleans"],
)
def test_what_is_not_a_matrix_of_floats_is_refused(weight):
    with pytest.raises(EckartError, match="must be a real floating-point matrix"):
        spectrum(weight)


@pytest.mark.parametrize("rows", [[[1.0, 2.0], [3.0, 4.0]], [[1, 2], [3, 4]], ((1.0, 2.0), (3.0, 4.0))])
def test_a_list_of_rows_is_a_matrix(rows, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as where no one checks types on every call
    assert torch.equal(spectrum(rows).singular_values, spectrum(np.array(rows, dtype=float)).singular_values)


@pytest.mark.parametrize(
    ("weight", "said"),
    [([[1.0, 2.0], [3.0]], "all of the same length"), ([1.0, 2.0], "matrix"), (np.array([["a"]]), "numbers")],
    ids=["ragged", "vector", "text"],
)
def test_what_is_no_list_of_rows_of_numbers_is_refused_in_words(weight, said, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(EckartError, match=said):
        as_slabs(weight)


def test_a_parameter_that_is_trained_is_read_as_a_value():
    weight = torch.nn.Parameter(torch.randn(8, 5, generator=seeded()))
    assert not spectrum(weight).singular_values.requires_grad


def test_the_norm_is_summed_in_float64():
    # Sixteen million equal values: added one by one in float32, they would stop counting long before the last.
    weight = torch.full((4096, 4096), 0.1)
    exact = float(np.float64(np.float32(0.1))) ** 2 * 4096**2
    assert frobenius_norm(Streamed(weight, rows=999)) ** 2 == pytest.approx(exact, rel=1e-12)
