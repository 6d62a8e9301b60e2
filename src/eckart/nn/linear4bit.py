"""Layers of bitsandbytes in NF4, read without importing it."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from eckart.errors import MismatchError
from eckart.linalg.nf4 import NESTED_BLOCK, Nf4Blocks


def is_linear4bit(module: nn.Module) -> bool:
    """Whether it is bitsandbytes' Linear4bit."""
    return any(c.__name__ == "Linear4bit" and c.__module__.startswith("bitsandbytes") for c in type(module).__mro__)


def blocks_of(module: nn.Module) -> Nf4Blocks:
    """The weight of a Linear4bit; its tensors are shared, not copied.

    Raises:
        MismatchError: it is not in NF4, or its scales were rounded when it was used on a CPU.
    """
    weight: Any = module.weight
    state: Any = weight.quant_state or getattr(module, "quant_state", None)
    if fault := _fault(state):
        msg = f"cannot read a weight of bitsandbytes: {fault}"
        raise MismatchError(msg)
    codes = weight.data.view(torch.uint8).reshape(-1, 1)
    blocks = Nf4Blocks(codes, state.absmax, tuple(state.shape), state.dtype, state.blocksize)
    if not state.nested:
        return blocks
    second = state.state2
    return replace(blocks, nested_absmax=second.absmax, nested_offset=state.offset, nested_map=second.code)


def _fault(state: Any) -> str | None:
    if state is None:
        return "it is not quantized yet; move the model to its device first"
    if state.quant_type != "nf4" or (state.nested and state.state2.blocksize != NESTED_BLOCK):
        return f"it is in {state.quant_type}; only NF4 with scales in blocks of {NESTED_BLOCK} is supported"
    if getattr(state, "packing_format_for_cpu", False):
        return "bitsandbytes rounded its scales to bfloat16 when it was used for inference on a CPU; load it again"
    return None
