"""A quantized weight and its low-rank correction, improved in turns until their joint error stops falling.

Li et al. (2023), "LoftQ"; Saha et al. (2024), "CALDERA"; here the factors are the best ones in a metric.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.linalg.low_rank import LowRank
from eckart.linalg.output_metric import Metric

ROUNDS = 4
LEAST_GAIN = 0.02  # share of the error by which a round must lower it to be followed by another

T = TypeVar("T")


def alternate(
    weight: Float[Tensor, "m n"],
    metric: Metric,
    quantize: Callable[[Tensor], tuple[T, Tensor]],
    *,
    rank: int,
    rounds: int = ROUNDS,
    generator: torch.Generator | None = None,
) -> tuple[T, LowRank, list[float]]:
    """Quantize W − BA and fit BA to what is left, in turns.

    Args:
        weight: W, shape `(out_features, in_features)`.
        metric: of the errors.
        quantize: from a weight, how it is stored and the values that this stands for.
        rank: of the correction.
        rounds: most turns.
        generator: source of randomness, on the CPU.

    Returns:
        `(stored, correction, errors)` of the best round: the norm of W − W̃ − BA of every round that was kept, falling.
    """
    wide = weight.to(torch.float64)
    errors: list[float] = []
    goal, best = wide, None
    for _ in range(rounds):
        stored, values = quantize(goal)
        left = wide - values
        correction, _ = metric.best_correction(left, rank=rank, generator=generator)
        product = correction.dense()
        error = metric.norm(left - product)
        if errors and not error < errors[-1]:
            break
        errors.append(error)
        best, goal = (stored, correction), wide - product
        if len(errors) > 1 and error > errors[-2] * (1 - LEAST_GAIN):
            break
    if best is None:
        msg = f"`rounds` must be at least 1, got {rounds}"
        raise ValueError(msg)
    return *best, errors
