"""What this machine's processor multiplies fast."""

import functools

import torch

_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and of ARM, as torch names them


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16; older torch cannot tell, and then it has not."""
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return any(able.get(name, False) for name in _BFLOAT16)
