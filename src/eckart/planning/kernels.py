"""Where a GPU's kernels work in place and the CPU's take memory: a step for a GPU, run as the GPU would run it."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from eckart.nn import processor
from eckart.planning.dataless import DatalessAdamW8bit

_TILES = "trl.kernels.chunked_logprob"  # imported where a step needs that loss


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Inside the block bfloat16 is multiplied, attention drops no scores, TRL's loss and AdamW in 8 bits work in place.

    Flash attention draws dropout inside its kernel, where the CPU falls back to a product that holds all scores. The
    loss' Triton kernels read and overwrite a tile of the logits, where the CPU makes several like it.
    """
    attention = nn.functional.scaled_dot_product_attention

    def without_dropout(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        return attention(query, key, value, *rest, **{**options, "dropout_p": 0.0})

    with ExitStack() as stack:
        stack.enter_context(patch.object(nn.functional, "scaled_dot_product_attention", without_dropout))
        stack.enter_context(patch.object(DatalessAdamW8bit, "work", lambda *_: None))
        stack.enter_context(patch.object(processor, "multiplies_bfloat16", lambda: True))
        if _TILES in sys.modules:
            for fold in ("_forward_tile", "_backward_tile"):
                stack.enter_context(patch.object(sys.modules[_TILES], fold, lambda *_, **__: None))
        yield
