"""E2M1, the 4-bit floating-point numbers of MXFP4 and NVFP4: two codes in each byte, the first in its low half.

Source: OCP Microscaling Formats 1.0.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from eckart.checkpoint.checkpoint import TensorInfo
from eckart.checkpoint.dtypes import FLOAT4_E2M1FN_X2, FLOAT8_E8M0FNU, UINT8
from eckart.checkpoint.encodings.lookup import looked_up, pairs_of

if TYPE_CHECKING:
    from torch import Tensor

PACKED = (UINT8, FLOAT4_E2M1FN_X2)
POWERS = (UINT8, FLOAT8_E8M0FNU)


def values(packed: "Tensor") -> "Tensor":
    """The numbers in bytes, float32, twice as many along the last dimension."""
    import torch

    data = packed.contiguous().view(torch.uint8)
    return looked_up(data.view(-1), _pairs()).view(*data.shape[:-1], 2 * data.shape[-1])


def fits(codes: TensorInfo, scale: TensorInfo, group: int) -> bool:
    """Whether packed codes have a scale for each group of values of the last dimension."""
    count = 2 * codes.shape[-1] if codes.shape else 0
    return count > 0 and count % group == 0 and scale.shape == (*codes.shape[:-1], count // group)


@lru_cache(maxsize=1)
def _pairs() -> "Tensor":
    import torch

    from eckart.linalg.scaled_codes import E2M1

    return pairs_of(torch.tensor([*E2M1, *(-value for value in E2M1)]))
