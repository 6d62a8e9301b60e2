"""MXFP4: E2M1 codes, two in each byte, and a power of two (E8M0) for every 32 of them.

gpt-oss stores the parameter X of its experts, `(experts, in, out)`, as `X_blocks` `(experts, out, in/32, 16)` and
`X_scales` `(experts, out, in/32)`. compressed-tensors stores `weight_packed` and `weight_scale`, Quark and ModelOpt
`weight` and `weight_scale`, and DeepSeek-V4 `weight` and `scale`, all of `(out, in/2)` and `(out, in/32)`. Source: OCP
Microscaling Formats 1.0, and `convert_moe_packed_tensors` of transformers.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from eckart.checkpoint.dtypes import BFLOAT16, FLOAT8_E8M0FNU, INT8, UINT8
from eckart.checkpoint.encodings import e2m1
from eckart.checkpoint.encodings.blocks import in_blocks
from eckart.checkpoint.encodings.encoded import Encoded, StoredModule, Unreadable
from eckart.checkpoint.encodings.scaled_scheme import ScaledScheme
from eckart.checkpoint.encodings.scales import powers_of_two

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32
_BLOCKS, _SCALES = "_blocks", "_scales"
_PACKED = 16  # bytes of a block


def mxfp4(module: StoredModule) -> Iterator[Encoded | Unreadable]:
    """The weights of a module in MXFP4."""
    for leaf, info in module.leaves.items():
        if leaf.endswith(_BLOCKS) and info.dtype == UINT8:
            yield from _experts_of(module, leaf.removesuffix(_BLOCKS))
        elif info.dtype in (*e2m1.PACKED, INT8):
            yield from _linear(module, leaf)


def _linear(module: StoredModule, codes: str) -> Iterator[Encoded | Unreadable]:
    """A weight whose scales are named as those of one in FP8."""
    leaves, weight = module.leaves, codes.removesuffix("_packed")
    for scale in (f"{weight}_scale", *(["scale"] if codes == "weight" else [])):
        # Bytes that are scaled by powers of two are also MXINT8, of which nobody writes weights.
        kinds = e2m1.POWERS if leaves[codes].dtype in e2m1.PACKED else (FLOAT8_E8M0FNU,)
        if scale not in leaves or leaves[scale].dtype not in kinds:
            continue
        shape, parts = leaves[codes].shape, (codes, scale)
        if e2m1.fits(leaves[codes], leaves[scale], GROUP):
            shape = (*shape[:-1], 2 * shape[-1])
            rows = in_blocks(partial(_rows, module, codes, scale), shape, BFLOAT16)
            is_written = len(shape) == 2 and leaves[codes].dtype in (UINT8, INT8)
            scheme = partial(_scheme, module, codes, scale, weight) if is_written else None
            yield module.weight(shape, rows, encoding="mxfp4", parts=parts, leaf=weight, dtype=BFLOAT16, scheme=scheme)
        else:
            reason = f"MXFP4: {module.shapes(*parts)} do not have a scale for every {GROUP} values"
            yield module.unreadable(parts, reason)


def _scheme(module: StoredModule, codes: str, scale: str, leaf: str, weight: str) -> ScaledScheme:
    packed, scales = module.spec(codes), module.spec(scale)
    shape = (packed.shape[0], 2 * packed.shape[1])
    return ScaledScheme(weight, shape, BFLOAT16, "mxfp4", leaf, "e2m1", (1, GROUP), packed, scales)


def _experts_of(module: StoredModule, parameter: str) -> Iterator[Encoded | Unreadable]:
    """Experts as gpt-oss stores them."""
    parts = (f"{parameter}{_BLOCKS}", f"{parameter}{_SCALES}")
    if parts[1] not in module.leaves:
        return
    blocks, scales = (module.leaves[part] for part in parts)
    is_packed = len(blocks.shape) == 4 and blocks.shape[3] == _PACKED and 0 not in blocks.shape
    if not is_packed or scales.shape != blocks.shape[:3] or scales.dtype not in e2m1.POWERS:
        reason = f"codes of shape {list(blocks.shape)} do not fit the shape {list(scales.shape)} of {scales.name}"
        yield module.unreadable(parts, f"MXFP4: {reason}")
        return
    experts, outputs, groups, _ = blocks.shape
    rows = partial(_experts, module, *parts)
    shape = (experts, GROUP * groups, outputs)
    yield module.weight(shape, rows, encoding="mxfp4", parts=parts, leaf=parameter, dtype=BFLOAT16)


def _experts(module: StoredModule, blocks: str, scales: str, start: int, stop: int) -> "Tensor":
    """Experts `start` to `stop`, `(experts, in, out)`, exact in bfloat16."""
    factors = powers_of_two(module, scales, module.rows(scales, start, stop))
    return _scaled(module.rows(blocks, start, stop), factors).transpose(1, 2)


def _rows(module: StoredModule, codes: str, scale: str, start: int, stop: int) -> "Tensor":
    """Entries `start` to `stop` of the first dimension, exact in bfloat16."""
    factors = powers_of_two(module, scale, module.rows(scale, start, stop))
    return _scaled(module.rows(codes, start, stop).unflatten(-1, (factors.shape[-1], _PACKED)), factors)


def _scaled(packed: "Tensor", factors: "Tensor") -> "Tensor":
    """Blocks of 16 bytes, each times its scale, joined."""
    import torch

    return e2m1.values(packed).mul_(factors[..., None]).to(torch.bfloat16).flatten(-2)
