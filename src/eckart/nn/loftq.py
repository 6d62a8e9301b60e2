"""A base in four bits with factors that compensate for its error: LoftQ."""

from typing import cast

import torch
from torch import Tensor, nn

from eckart.linalg import factorize, nf4
from eckart.nn.adapted import AdaptedModule
from eckart.nn.factors import LoRAFactors
from eckart.nn.quantized import Nf4Linear

_ROUNDS = 5


def loftq(
    weight: Tensor, rank: int, scaling: float, *, block_size: int = 64, double: bool = True
) -> tuple[nf4.Nf4Blocks, Tensor, Tensor]:
    """Quantize a weight and factorize the error alternately; returns the best of five rounds.

    Args:
        weight: shape `(out_features, in_features)`.
        rank: rank of the factors.
        scaling: scale of their product.
        block_size: number of values that share a scale.
        double: whether the scales are quantized too.

    Returns:
        Q in NF4, A `(rank, in_features)` and B `(out_features, rank)` of the round with the least
        ‖W − Q − scaling·B·A‖.

    Li et al. (2023), "LoftQ: LoRA-fine-tuning-aware quantization for large language models".
    """
    target = weight.float()
    update = torch.zeros_like(target)
    best: tuple[float, nf4.Nf4Blocks, Tensor, Tensor] | None = None
    for _ in range(_ROUNDS):
        blocks = nf4.quantize((target - update).to(weight.dtype), block_size=block_size, double=double)
        error = target - blocks.dequantize(torch.float32)
        low_rank = factorize(error, rank=rank) * (1 / scaling)
        update = low_rank.dense().float() * scaling
        remainder = float(torch.linalg.vector_norm(error - update, dtype=torch.float64))
        if best is None or remainder < best[0]:
            best = remainder, blocks, low_rank.lora_A, low_rank.lora_B
    assert best is not None
    return best[1:]


def quantize_around(module: AdaptedModule, factors: LoRAFactors) -> None:
    """Quantize the base of an adapted linear layer to NF4, and let the factors compensate for the error.

    The adapter as a value is still B·A − B₀·A₀, what training changes, and fits the dense base.
    """
    blocks, A, B = loftq(module.rows(), factors.rank, factors.scaling)
    module.base_layer = Nf4Linear(blocks, cast("nn.Parameter | None", module.bias))
    factors.start_at(A, B)
    factors.compensates = True
