"""Which products are fast on this machine's processor."""

import functools

import torch

_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # torch's names for those of x86 and ARM


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products in bfloat16; False if torch is too old to report it."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in _BFLOAT16)
