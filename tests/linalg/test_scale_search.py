"""Scales for the inputs that matter: the least weighted error of every block, for every encoding with block scales."""

import pytest
import torch

from eckart.linalg import nf4
from eckart.linalg.scale_search import FACTORS, least_error
from eckart.linalg.scaled_codes import quantize

from .planting import seeded

SHAPE = (12, 256)


def weight_and_importance() -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(3)
    weight = torch.randn(SHAPE, generator=generator) * torch.rand(SHAPE, generator=generator).exp()
    return weight, torch.randn(SHAPE[1], generator=generator).mul(2).exp()


def scaled(kind: str, block: int, scales: torch.dtype):
    types = {"kind": kind, "block": (1, block), "scales": scales, "dtype": torch.float32}
    return lambda weight, importance=None: quantize(weight, importance=importance, **types)


ENCODINGS = {  # how a weight is quantized, and the share of the weighted error that is left at most
    "nf4": (lambda weight, importance=None: nf4.quantize(weight, importance=importance), 0.9),
    "nf4, double": (lambda weight, importance=None: nf4.quantize(weight, double=True, importance=importance), 0.9),
    "nf4, incomplete block": (
        lambda weight, importance=None: nf4.quantize(weight, block_size=4096, importance=importance),
        1.0,
    ),
    "int4": (scaled("int4", 64, torch.bfloat16), 0.9),
    "int8": (scaled("int8", 64, torch.bfloat16), 0.95),
    "mxfp4": (scaled("e2m1", 32, torch.float8_e8m0fnu), 1.0),
    "nvfp4": (scaled("e2m1", 16, torch.float8_e4m3fn), 0.9),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_weighted_error_is_lower_and_the_codes_are_the_nearest_ones(encoding):
    of, most = ENCODINGS[encoding]
    weight, importance = weight_and_importance()
    usual, suited = of(weight), of(weight, importance)
    errors = [
        float(((each.dequantize(torch.float32) - weight).square() * importance).sum()) for each in (usual, suited)
    ]
    assert errors[1] <= most * errors[0]
    grid = suited.scaled_levels()
    assert torch.equal(grid.decode(grid.codes(weight)), suited.dequantize(torch.float32))


def test_every_block_has_the_best_of_all_factors():
    weight, importance = weight_and_importance()
    usual, suited = nf4.quantize(weight), nf4.quantize(weight, importance=importance)
    for number, (block, weights) in enumerate(
        zip(weight.view(-1, 64), importance.expand(SHAPE).reshape(-1, 64), strict=True)
    ):
        errors = []
        for factor in FACTORS:
            values = nf4.CODEBOOK * usual.absmax[number] * factor
            distance = (block[:, None] - values).abs().amin(1)
            errors.append(float((distance.square() * weights).sum()))
        chosen = suited.absmax[number] / usual.absmax[number]
        assert errors[min(range(len(FACTORS)), key=lambda i: abs(FACTORS[i] - chosen))] <= min(errors) * (1 + 1e-4)


def test_fp8_keeps_its_scales():
    weight, importance = weight_and_importance()
    of = scaled("e4m3", 128, torch.float32)
    assert torch.equal(of(weight, importance).scales, of(weight).scales)


def test_zeros_stay_zeros():
    for of, _ in ENCODINGS.values():
        assert not of(torch.zeros(SHAPE), torch.ones(SHAPE[1])).dequantize(torch.float32).any()


def test_the_first_of_equal_candidates_is_taken():
    candidates = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])]
    chosen = least_error(candidates, lambda scales: (scales - 2).abs())
    assert torch.equal(chosen, torch.tensor([1.0, 2.0]))
