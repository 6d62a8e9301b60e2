"""NVFP4: E2M1 codes, two in each byte, an E4M3 scale for every 16 of them, and one float32 scale for the tensor.

ModelOpt stores `weight`, `weight_scale` and `weight_scale_2`, all of which multiply; of fused experts
`gate_up_proj_weight_scale`, with codes and scales `(experts, in/2, out)` and `(experts, in/16, out)`.
compressed-tensors stores `weight_packed`, `weight_scale`, and `weight_global_scale`, which divides.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from eckart.checkpoint.dtypes import FLOAT8_E4M3FN, FLOAT32, UINT8
from eckart.checkpoint.encodings import e2m1, torchao
from eckart.checkpoint.encodings.blocks import in_blocks
from eckart.checkpoint.encodings.encoded import Encoded, PartNames, StoredModule, Unreadable
from eckart.checkpoint.encodings.scaled_scheme import ScaledScheme
from eckart.checkpoint.encodings.scales import times

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 16
_DIVIDES = "_global_scale"


def nvfp4(module: StoredModule) -> Iterator[Encoded | Unreadable]:
    """The weights of a module in NVFP4."""
    leaves = module.leaves
    for codes, info in leaves.items():
        if info.dtype not in e2m1.PACKED:
            continue
        for names in _names(codes):
            if names.scale in leaves and names.second in leaves and leaves[names.scale].dtype == FLOAT8_E4M3FN:
                yield _weight(module, names)


def _names(codes: str) -> Iterator[PartNames]:
    if codes == torchao.CODES:
        yield PartNames("weight", codes, torchao.SCALE, torchao.SECOND)
        return
    weight = codes.removesuffix("_packed")
    yield PartNames(
        weight, codes, f"{weight}_scale", f"{weight}_global_scale" if weight != codes else f"{weight}_scale_2"
    )
    if codes != "weight":
        yield PartNames(weight, codes, f"{weight}_weight_scale", f"{weight}_weight_scale_2")


def _weight(module: StoredModule, names: PartNames) -> Encoded | Unreadable:
    codes, scale, second = (module.leaves[part] for part in names.stored)
    shape = codes.shape
    is_transposed = len(shape) == 3 and scale.shape == (shape[0], 2 * shape[1] // GROUP, shape[2])
    count = math.prod(second.shape)
    if not is_transposed and not e2m1.fits(codes, scale, GROUP):
        reason = f"{module.shapes(names.codes, names.scale)} do not have a scale for every {GROUP} values"
    elif count not in ({1, shape[0]} if len(shape) == 3 else {1}) or not second.dtype.is_floating_point:
        reason = f"{module.shapes(names.codes, names.second)} do not have one scale for each matrix"
    else:
        shape = (shape[0], 2 * shape[1], shape[2]) if is_transposed else (*shape[:-1], 2 * shape[-1])
        rows = in_blocks(partial(_transposed if is_transposed else _rows, module, names), shape)
        is_written = len(shape) == 2 and codes.dtype == UINT8
        scheme = partial(_scheme, module, names) if is_written else None
        return module.weight(shape, rows, encoding="nvfp4", parts=names.stored, leaf=names.weight, scheme=scheme)
    return module.unreadable(names.stored, f"NVFP4: {reason}")


def _scheme(module: StoredModule, names: PartNames, weight: str) -> ScaledScheme:
    codes, scale, second = (module.spec(part) for part in names.stored)
    shape = (codes.shape[0], 2 * codes.shape[1])
    return ScaledScheme(weight, shape, FLOAT32, "nvfp4", names.weight, "e2m1", (1, GROUP), codes, scale, second,
                        divides=names.second.endswith(_DIVIDES))  # fmt: skip


def _transposed(module: StoredModule, names: PartNames, start: int, stop: int) -> "Tensor":
    """Experts `start` to `stop`, `(experts, in, out)`."""
    codes, factors = module.rows(names.codes, start, stop), _factors(module, names, start, stop)
    return _scaled(module, names, codes.transpose(1, 2).contiguous(), factors.transpose(1, 2)).transpose(1, 2)


def _rows(module: StoredModule, names: PartNames, start: int, stop: int) -> "Tensor":
    """Entries `start` to `stop` of the first dimension."""
    return _scaled(module, names, module.rows(names.codes, start, stop), _factors(module, names, start, stop))


def _factors(module: StoredModule, names: PartNames, start: int, stop: int) -> "Tensor":
    """Both scales as one factor, rounded to float32 before it multiplies codes, as ModelOpt does it."""
    import torch

    second = module.read(names.second).to(torch.float32)
    if not bool((torch.isfinite(second) & (second > 0)).all()):
        raise module.refuse(names.second, "is not a positive, finite number")
    second = second.reshape(()) if second.numel() == 1 else second.reshape(-1)[start:stop, None, None]
    scales = module.rows(names.scale, start, stop).to(torch.float32)
    return scales / second if names.second.endswith(_DIVIDES) else scales * second


def _scaled(module: StoredModule, names: PartNames, codes: "Tensor", factors: "Tensor") -> "Tensor":
    values = e2m1.values(codes).unflatten(-1, (factors.shape[-1], GROUP))
    return times(module, names.scale, values, factors[..., None]).flatten(-2)
