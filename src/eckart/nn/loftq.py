"""A base in four bits with factors that hold what it lost: LoftQ."""

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
    """Quantize a weight and factor the error, in turns; the best of five rounds is kept.

    Args:
        weight: shape `(out_features, in_features)`.
        rank: of the factors.
        scaling: that their product gets.
        block_size: values that share a scale.
        double: whether the scales are quantized too.

    Returns:
        Q in NF4, A `(rank, in_features)` and B `(out_features, rank)`: of all rounds those with the least
        ‖W − Q − scaling·B·A‖.

    Li et al. (2023), "LoftQ: LoRA-fine-tuning-aware quantization for large language models".
    """
    target = weight.float()
    update = torch.zeros_like(target)
    best: tuple[float, nf4.Nf4Blocks, Tensor, Tensor] | None = None
    for _ in range(_ROUNDS):
        blocks = nf4.quantize((target - update).to(weight.dtype), block_size=block_size, double=double)
        error = target - blocks.dequantize(torch.float32)
        found = factorize(error, rank=rank) * (1 / scaling)
        update = found.dense().float() * scaling
        left = float(torch.linalg.vector_norm(error - update, dtype=torch.float64))
        if best is None or left < best[0]:
            best = left, blocks, found.lora_A, found.lora_B
    assert best is not None
    return best[1:]


def quantize_around(module: AdaptedModule, factors: LoRAFactors) -> None:
    """Put the base of an adapted linear layer into NF4, and into the factors what that loses.

    The adapter as a value stays what training changes, B·A − B₀·A₀: it fits the dense base.
    """
    blocks, A, B = loftq(module.rows(), factors.rank, factors.scaling)
    module.base_layer = Nf4Linear(blocks, cast("nn.Parameter | None", module.bias))
    factors.start_at(A, B)
    factors.compensates = True
