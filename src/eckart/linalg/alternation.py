"""A quantized weight and its low-rank correction, improved in turns until their joint output error stops falling.

Li et al. (2023), "LoftQ"; Saha et al. (2024), "CALDERA"; here both steps count errors of the outputs.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from eckart.linalg.low_rank import LowRank
from eckart.linalg.output_metric import best_correction, output_norm

ROUNDS = 4
LEAST_GAIN = 0.01  # share of the output error by which another round must lower it

T = TypeVar("T")


def alternate(
    weight: Float[Tensor, "m n"],
    factor: Float64[Tensor, "n n"],
    quantize: Callable[[Tensor], tuple[T, Tensor]],
    *,
    rank: int,
    rounds: int = ROUNDS,
    generator: torch.Generator | None = None,
) -> tuple[T, LowRank, list[float]]:
    """Quantize W − BA and fit BA to what is left, in turns.

    Args:
        weight: W, shape `(out_features, in_features)`.
        factor: R of the second moment R·Rᵀ.
        quantize: from a weight, how it is stored and the values that this stands for.
        rank: of the correction.
        rounds: most turns.
        generator: source of randomness, on the CPU.

    Returns:
        `(stored, correction, errors)` of the best round: ‖(W − W̃ − BA)·R‖_F of every round that was kept, falling.
    """
    wide = weight.to(torch.float64)
    errors: list[float] = []
    goal, best = wide, None
    for _ in range(rounds):
        stored, values = quantize(goal)
        left = wide - values
        correction, _ = best_correction(left, factor, rank=rank, generator=generator)
        product = correction.dense()
        error = output_norm(left - product, factor)
        if best is not None and not error < errors[-1] * (1 - LEAST_GAIN):
            break
        errors.append(error)
        best, goal = (stored, correction), wide - product
    if best is None:
        msg = f"`rounds` must be at least 1, got {rounds}"
        raise ValueError(msg)
    return *best, errors
