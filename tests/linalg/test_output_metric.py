"""Corrections and codes in the metric of a layer's outputs, against dense float64 references."""

import math

import pytest
import torch

from eckart.errors import EckartError
from eckart.linalg import nf4
from eckart.linalg.alternation import alternate
from eckart.linalg.calibrated_codes import calibrated_codes
from eckart.linalg.output_metric import Metric, damped_factor, emphasized, moment_factor
from eckart.linalg.scaled_levels import ScaledLevels

from .planting import seeded

RNG = 7


def normal(*shape: int, seed: int = RNG) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def second_moment(kind: str, size: int) -> torch.Tensor:
    """Σ x xᵀ of inputs of one kind."""
    tokens = normal(size // 3 if kind == "fewer tokens than channels" else 20 * size, size)
    if kind == "correlated":
        tokens = tokens @ (normal(size, size, seed=8) / math.sqrt(size))
    if kind == "outlier channel":
        tokens[:, 3] *= 1e3
    if kind == "dead channel":
        tokens[:, 5] = 0
    if kind == "repeated channel":
        tokens[:, 1] = tokens[:, 0]
    return tokens.T @ tokens


KINDS = [
    "independent", "correlated", "outlier channel", "dead channel", "repeated channel", "fewer tokens than channels",
]  # fmt: skip
SHAPES = [(48, 48), (96, 40), (40, 96), (1, 30), (30, 1)]


def square_root(moment: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounded", [False, True])
def test_the_factor_reproduces_the_second_moment_to_rounding_in_float32(kind, rounded):
    moment = second_moment(kind, 60)
    factor = moment_factor(moment.float() if rounded else moment)
    lengths = moment.diagonal().sqrt()
    scale = lengths[:, None] * lengths
    assert bool(((factor @ factor.T - moment).abs() <= 1e-5 * scale).all())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [None, "correlated", "fewer tokens than channels"])
def test_a_correction_is_as_good_as_the_svd_of_the_error_between_the_roots_of_the_moments(shape, kind, outputs):
    if shape[1] < 6:
        kind = "independent"
    error, moment, left = normal(*shape), second_moment(kind, shape[1]), torch.eye(shape[0], dtype=torch.float64)
    metric = Metric(moment_factor(moment))
    if outputs:
        gradients = second_moment(outputs, shape[0])
        metric = Metric(metric.inputs, damped_factor(gradients, 0.1))
        left = square_root(gradients + 0.1 * gradients.diagonal().mean() * left)
    root = square_root(moment)
    for rank in {1, min(4, *shape), min(shape)}:
        correction, spectrum = metric.best_correction(error, rank=rank, generator=seeded())
        tail = torch.linalg.svdvals(left @ error @ root)[rank:]
        least = float(torch.linalg.vector_norm(tail))
        achieved = float(torch.linalg.matrix_norm(left @ (error - correction.dense()) @ root))
        total = float(torch.linalg.matrix_norm(left @ error @ root))
        assert correction.rank == rank
        assert metric.norm(error) == pytest.approx(total, rel=1e-3)
        assert achieved <= least * (1 + 1e-3) + 1e-4 * total
        assert spectrum.error_bounds(rank)[0] * spectrum.fro_norm <= achieved + 1e-4 * total


def test_outputs_without_gradients_still_have_a_best_correction():
    error, moment = normal(12, 20), second_moment("independent", 20)
    unweighted, _ = Metric(moment_factor(moment)).best_correction(error, rank=3, generator=seeded())
    metric = Metric(moment_factor(moment), damped_factor(torch.zeros(12, 12), 0.1))
    weighted, _ = metric.best_correction(error, rank=3, generator=seeded())
    torch.testing.assert_close(weighted.dense(), unweighted.dense(), rtol=1e-6, atol=1e-9)


def test_a_correction_in_the_output_metric_beats_the_plain_svd_there():
    error, metric = normal(60, 80), Metric(moment_factor(second_moment("correlated", 80)))
    correction, _ = metric.best_correction(error, rank=8, generator=seeded())
    U, S, Vh = torch.linalg.svd(error, full_matrices=False)
    plain = (U[:, :8] * S[:8]) @ Vh[:8]
    assert metric.norm(error - correction.dense()) < 0.9 * metric.norm(error - plain)


def test_scaling_the_error_by_a_power_of_two_scales_the_correction():
    error, metric = normal(20, 30), Metric(moment_factor(second_moment("correlated", 30)))
    small, _ = metric.best_correction(error, rank=3, generator=seeded())
    large, _ = metric.best_correction(error * 2.0**40, rank=3, generator=seeded())
    torch.testing.assert_close(large.dense(), small.dense() * 2.0**40, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("moment", "message"),
    [
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "not positive semidefinite"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), "NaN or Inf"),
    ],
)
def test_a_matrix_that_is_no_second_moment_is_refused(moment, message):
    with pytest.raises(EckartError, match=message):
        moment_factor(moment)


def grids(weight: torch.Tensor) -> dict[str, ScaledLevels]:
    """One grid of each kind for a weight."""
    largest = weight.abs().amax(1, keepdim=True).float().expand(weight.shape)
    return {
        "nf4": nf4.quantize(weight.float(), block_size=32).scaled_levels(),
        "nf4, double": nf4.quantize(weight.float(), block_size=32, double=True).scaled_levels(),
        "int4, a scale per row": ScaledLevels(torch.arange(-8, 8).float(), largest / 7),
        "ternary": ScaledLevels(torch.tensor([-1.0, 0.0, 1.0]), largest / 2),
    }


GRIDS = list(grids(torch.ones(2, 2)))


@pytest.mark.parametrize("grid_kind", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(40, 96), (7, 130), (33, 50)], ids=str)
def test_calibrated_codes_have_a_smaller_output_error_than_the_nearest_ones(grid_kind, kind, shape):
    weight, moment = normal(*shape), second_moment(kind, shape[1])
    grid, metric = grids(weight)[grid_kind], Metric(moment_factor(moment))
    nearest = metric.norm(weight - grid.decode(grid.codes(weight)))
    codes = calibrated_codes(weight, moment, grid, damping=0.01)
    calibrated = metric.norm(weight - grid.decode(codes))
    assert (codes.shape, codes.dtype) == (weight.shape, torch.uint8)
    assert calibrated <= nearest * (1 + 1e-6)


def sequential(weight: torch.Tensor, moment: torch.Tensor, grid: ScaledLevels, damping: float) -> torch.Tensor:
    """GPTQ as published: quantize a column, then move its error into the later ones through the inverse of H."""
    H = moment / moment.diagonal().mean() + damping * torch.eye(len(moment), dtype=torch.float64)
    order = moment.diagonal().argsort(descending=True, stable=True)
    upper = torch.linalg.cholesky(torch.linalg.inv(H[order][:, order]), upper=True)
    left, codes = weight[:, order].clone(), torch.zeros(weight.shape, dtype=torch.uint8)
    for j, column in enumerate(order.tolist()):
        here = slice(column, column + 1)
        codes[:, here] = grid.codes(left[:, j : j + 1].float(), here)
        error = (left[:, j] - grid.decode(codes[:, here], here)[:, 0]) / upper[j, j]
        left[:, j:] -= error[:, None] * upper[j, j:]
    return codes


@pytest.mark.parametrize("kind", KINDS[:4])
@pytest.mark.parametrize("damping", [0.01, 0.5])
def test_calibrated_codes_are_those_of_gptq(kind, damping):
    weight, moment = normal(24, 150), second_moment(kind, 150)
    grid = grids(weight)["int4, a scale per row"]
    codes = calibrated_codes(weight, moment, grid, damping=damping)
    expected = sequential(weight, moment, grid, damping)
    assert float((codes == expected).double().mean()) > 0.999


def test_more_damping_stays_nearer_to_the_weight():
    weight, moment = normal(40, 80), second_moment("correlated", 80)
    grid = grids(weight)["nf4"]
    plain = [
        float((weight - grid.decode(calibrated_codes(weight, moment, grid, damping=damping))).norm())
        for damping in (0.01, 0.3, 10.0)
    ]
    assert plain == sorted(plain, reverse=True)
    nearest = float((weight - grid.decode(grid.codes(weight))).norm())
    assert plain[-1] == pytest.approx(nearest, rel=0.02)


@pytest.mark.parametrize("grid_kind", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_alternating_codes_and_factors_only_ever_lowers_the_output_error(grid_kind, kind):
    weight, moment = normal(48, 64), second_moment(kind, 64)
    metric = Metric(moment_factor(moment))

    def quantize(goal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grid = grids(goal)[grid_kind]
        values = grid.decode(calibrated_codes(goal, moment, grid, damping=0.05))
        return values, values.double()

    stored, correction, errors = alternate(weight, metric, quantize, rank=4, rounds=6, generator=seeded())
    assert errors
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == len(errors)
    residual = weight - stored.double() - correction.dense()
    assert metric.norm(residual) == pytest.approx(errors[-1], rel=1e-9)
    first, _ = metric.best_correction(weight - quantize(weight)[1], rank=4, generator=seeded())
    assert errors[0] == pytest.approx(metric.norm(weight - quantize(weight)[1] - first.dense()), rel=1e-9)


@pytest.mark.parametrize("vectors", [1, 3, 6])
def test_emphasis_adds_the_projection_onto_the_span_of_the_directions(vectors):
    moment, directions = second_moment("correlated", 24), normal(3, 24)
    directions = torch.cat([directions, directions])[:vectors]  # of 6, three are repeated
    rank = min(vectors, 3)
    projection = directions.T @ torch.linalg.pinv(directions @ directions.T) @ directions
    expected = moment + 2.0 * moment.trace() / rank * projection
    torch.testing.assert_close(emphasized(moment, directions, 2.0), expected, rtol=1e-9, atol=1e-6)


def test_directions_of_zeros_add_nothing():
    moment = second_moment("independent", 10)
    assert torch.equal(emphasized(moment, torch.zeros(2, 10), 1.0), moment)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", [(6, 64), (5, 33), (3, 7)], ids=str)
def test_nf4_codes_survive_unpacking_and_packing(double, shape):
    blocks = nf4.quantize(normal(*shape).float(), double=double)
    grid = blocks.scaled_levels()
    packed = blocks.with_codes(grid.codes(blocks.dequantize()))
    assert torch.equal(packed.codes, blocks.codes)
    assert torch.equal(grid.decode(grid.codes(blocks.dequantize())), blocks.dequantize())


def test_a_zero_block_has_only_zeros_on_its_grid():
    weight = torch.zeros(2, 64)
    weight[1] = torch.linspace(-1, 1, 64)
    grid = nf4.quantize(weight).scaled_levels()
    decoded = grid.decode(grid.codes(torch.ones(2, 64)))
    assert not decoded[0].any()
    assert bool((decoded[1] == 1).all())
