"""FP4 of bitsandbytes: codes for 16 values that the file contains, two in each byte, and a scale for each block.

The high half of a byte comes first. With double quantization scales are bytes, codes of a map with a scale for 256 of
them, plus an offset. NF4 is stored the same way, and is quantized too. Source: `QuantState.as_dict(packed=True)`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.checkpoint import TensorInfo
from eckart.checkpoint.dtypes import FLOAT32, UINT8, DType
from eckart.checkpoint.encodings.encoded import Encoded, StoredModule, Unreadable
from eckart.checkpoint.encodings.nf4_scheme import NF4_DTYPES
from eckart.checkpoint.encodings.scales import times
from eckart.checkpoint.json_files import parse_json
from eckart.linalg.nf4_constants import BLOCK_SIZES, NESTED_BLOCK, NESTED_CODES, QUANTILES

if TYPE_CHECKING:
    from torch import Tensor

_STATE = "quant_state.bitsandbytes__fp4"
_PARTS = ("weight", "absmax", "quant_map", "nested_absmax", "nested_quant_map", _STATE)
_STATE_LIMIT_BYTES = 2**16


def fp4(module: StoredModule) -> Iterator[Encoded | Unreadable]:
    """The weight of a module in FP4."""
    name, tensors = f"{module.name}.weight", module.stored.tensors
    if "weight" not in module.leaves or f"{name}.{_STATE}" not in tensors:
        return
    parts = {part: tensors[f"{name}.{part}"] for part in _PARTS[1:] if f"{name}.{part}" in tensors}
    module = replace(module, leaves={"weight": module.leaves["weight"], **parts})
    state = _state(module)
    if state is None or not _fits(module.leaves, state):
        yield module.unreadable(_PARTS, "FP4 of bitsandbytes, whose tensors do not fit together")
        return
    shape = tuple(state["shape"])
    dtype = NF4_DTYPES[state["dtype"]]
    yield module.weight(shape, partial(_rows, module, state), encoding="fp4", parts=_PARTS, dtype=dtype)


def _state(module: StoredModule) -> Mapping[str, Any] | None:
    """The JSON stored with a weight; None if bitsandbytes does not write such."""
    info = module.leaves[_STATE]
    try:
        state = parse_json(module.stored.read_bytes(info.name)) if info.nbytes <= _STATE_LIMIT_BYTES else None
    except ValueError:
        return None
    if not isinstance(state, dict) or state.get("quant_type") != "fp4" or state.get("blocksize") not in BLOCK_SIZES:
        return None
    shape = state.get("shape")
    sizes = shape if isinstance(shape, list) else []
    is_shape = 1 <= len(sizes) <= 8 and all(type(size) is int and 0 < size < 2**48 for size in sizes)
    offset = state.get("nested_offset", 0.0)
    is_offset = isinstance(offset, float) and math.isfinite(offset)
    return state if is_shape and is_offset and str(state.get("dtype")) in NF4_DTYPES else None


def _fits(leaves: Mapping[str, TensorInfo], state: Mapping[str, Any]) -> bool:
    """Whether codes and scales are those of a weight of the stated shape."""
    count = math.prod(state["shape"])
    blocks = -(-count // state["blocksize"])
    is_double = "nested_offset" in state
    expected: dict[str, tuple[int, DType]] = {
        "absmax": (blocks, UINT8 if is_double else FLOAT32),
        "quant_map": (len(QUANTILES), FLOAT32),
    }
    if is_double:
        expected |= {
            "nested_absmax": (-(-blocks // NESTED_BLOCK), FLOAT32),
            "nested_quant_map": (NESTED_CODES, FLOAT32),
        }
    fits = all(leaf in leaves and (leaves[leaf].shape, leaves[leaf].dtype) == ((size,), dtype)
               for leaf, (size, dtype) in expected.items())  # fmt: skip
    return fits and (leaves["weight"].shape, leaves["weight"].dtype) == ((-(-count // 2), 1), UINT8)


def _rows(module: StoredModule, state: Mapping[str, Any], start: int, stop: int) -> "Tensor":
    """Entries `start` to `stop` of the first dimension: code times scale in float32, then in the stated dtype."""
    import torch

    shape, size = state["shape"], state["blocksize"]
    row, count = math.prod(shape[1:]), math.prod(shape)
    first, last = start * row // size, -(-min(stop * row, count) // size)  # blocks
    data = module.rows("weight", first * size // 2, -(-min(last * size, count) // 2)).view(-1)
    values = module.read("quant_map")[torch.stack([data >> 4, data & 15], -1).flatten().int()]
    values = torch.nn.functional.pad(values, (0, (last - first) * size - len(values))).view(-1, size)
    values = times(module, "absmax", values, _scales(module, state, first, last)[:, None]).flatten()
    begin = start * row - first * size
    return (
        values[begin : begin + (stop - start) * row].view(stop - start, *shape[1:]).to(NF4_DTYPES[state["dtype"]].torch)
    )


def _scales(module: StoredModule, state: Mapping[str, Any], first: int, last: int) -> "Tensor":
    """The scales of blocks `first` to `last`, float32."""
    import torch

    stored = module.rows("absmax", first, last)
    if "nested_offset" not in state:
        return stored
    outer = module.read("nested_absmax")[torch.arange(first, last) // NESTED_BLOCK]
    return module.read("nested_quant_map")[stored.int()] * outer + state["nested_offset"]
