"""MXFP4, in which gpt-oss stores its experts: two E2M1 codes in each byte, and a power of two for every 32 of them.

`X_blocks` is `(experts, out, in/32, 16)`, with the low half of each byte first, and `X_scales` `(experts, out, in/32)`,
exponents with a bias of 127. The model's parameter X is `(experts, in, out)`. Source: OCP Microscaling Formats 1.0, and
`convert_moe_packed_tensors` of transformers.
"""

from functools import partial
from typing import TYPE_CHECKING

from eckart.checkpoint.checkpoint import Checkpoint, TensorInfo
from eckart.checkpoint.dtypes import BFLOAT16, UINT8
from eckart.checkpoint.encodings.encoded import Encoded
from eckart.errors import FileFormatError

if TYPE_CHECKING:
    from torch import Tensor

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of the codes 0 to 7; 8 to 15 are their negatives
_PACKED = 16  # bytes of a block
_BIAS = 127
_NAN = 255
BLOCKS, SCALES = "_blocks", "_scales"


def read_mxfp4(stored: Checkpoint) -> tuple[list[Encoded], dict[str, str]]:
    """The weights in MXFP4, and by name the codes whose scales do not fit, with the reason."""
    found, faults = [], {}
    for name, blocks in stored.tensors.items():
        parameter = name.removesuffix(BLOCKS)
        scales = stored.tensors.get(f"{parameter}{SCALES}")
        if parameter == name or scales is None or blocks.dtype != UINT8:
            continue
        if len(blocks.shape) != 4 or blocks.shape[3] != _PACKED or scales.shape != blocks.shape[:3]:
            faults[name] = (
                f"codes of shape {list(blocks.shape)} do not fit the shape {list(scales.shape)} of {scales.name}"
            )
            continue
        experts, outputs, groups, _ = blocks.shape
        shape = (experts, groups * 2 * _PACKED, outputs)
        weight = TensorInfo(parameter, shape, BFLOAT16, blocks.nbytes + scales.nbytes, blocks.file, "mxfp4")
        found.append(Encoded(weight, (name, scales.name), partial(_experts, stored, name, scales.name)))
    return found, faults


def _experts(stored: Checkpoint, blocks: str, scales: str, start: int, stop: int) -> "Tensor":
    """Experts `start` to `stop`, `(experts, in, out)`, exact in bfloat16."""
    import torch

    packed, biased = stored.rows(blocks, start, stop), stored.rows(scales, start, stop)
    if bool((biased == _NAN).any()):
        msg = f"{stored.source}: {scales} has scales that are not a number"
        raise FileFormatError(msg)
    exponents = biased.to(torch.int32) - _BIAS
    table = torch.tensor([*_VALUES, *(-value for value in _VALUES)], dtype=torch.float32)
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
    values = torch.ldexp(table[codes.long()], exponents[..., None])
    return values.flatten(-2).transpose(1, 2).to(torch.bfloat16)
