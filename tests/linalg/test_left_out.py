"""Damping for codes that are better than the nearest ones on every kind of inputs, also one they never saw."""

import pytest
import torch

from eckart.linalg import nf4
from eckart.linalg.calibrated_codes import calibrated_codes
from eckart.linalg.left_out import DAMPINGS, best_damping
from eckart.linalg.output_metric import Metric, moment_factor

SIDE = 128


def kinds(likeness: float, seed: int) -> list[torch.Tensor]:
    """Second moments of three kinds of inputs, between unlike (0) and the same (1)."""
    generator = torch.Generator().manual_seed(seed)
    decay = torch.linspace(0, -6, SIDE).exp()
    common = torch.linalg.qr(torch.randn(SIDE, SIDE, generator=generator)).Q
    found = []
    for _ in range(3):
        own = torch.linalg.qr(torch.randn(SIDE, SIDE, generator=generator)).Q
        moment = likeness * (common * decay) @ common.T + (1 - likeness) * (own * decay) @ own.T
        found.append(moment.double())
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("likeness", [0.0, 0.5, 1.0])
def test_chosen_codes_are_better_on_every_kind_that_was_left_out(likeness, seed) -> None:
    weight = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    moments, grid = kinds(likeness, seed), nf4.quantize(weight).scaled_levels()
    wide = weight.double()
    nearest = wide - grid.decode(grid.codes(wide))

    def worst(damping: float) -> float:
        shares = []
        for left_out, moment in enumerate(moments):
            others = torch.stack([each for number, each in enumerate(moments) if number != left_out]).sum(0)
            error = wide - grid.decode(calibrated_codes(wide, others, grid, damping=damping))
            metric = Metric(moment_factor(moment))
            shares.append(metric.norm(error) / metric.norm(nearest))
        return max(shares)

    found = best_damping(weight, moments, grid)
    measured = {damping: worst(damping) for damping in DAMPINGS}
    if found is None:
        assert min(measured.values()) >= 1
    else:
        assert measured[found] == min(measured.values()) < 1
    assert likeness < 1 or found is not None


def test_one_kind_or_none_that_is_seen_leaves_the_nearest_codes() -> None:
    weight = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    grid = nf4.quantize(weight).scaled_levels()
    assert best_damping(weight, kinds(1.0, 0)[:1], grid) is None
    assert best_damping(weight, [torch.zeros(SIDE, SIDE)] * 3, grid) is None
