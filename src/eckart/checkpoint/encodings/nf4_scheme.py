"""How bitsandbytes stores a weight in NF4: the tensors of one weight, checked from headers, and to be written.

`X.weight` contains the codes; next to it are its scales, its maps and a JSON text with the shape and the dtype.
Source: bitsandbytes' `QuantState.as_dict(packed=True)`.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.dtypes import BFLOAT16, FLOAT16, FLOAT32, UINT8, DType
from eckart.checkpoint.json_files import parse_json
from eckart.checkpoint.writer import TensorSpec
from eckart.errors import FileFormatError
from eckart.linalg.nf4_constants import BLOCK_SIZES, NESTED_BLOCK, NESTED_CODES, QUANTILES

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.linalg.nf4 import Nf4Blocks

STATE = ".quant_state.bitsandbytes__nf4"
NF4_DTYPES = {dtype.name: dtype for dtype in (FLOAT32, BFLOAT16, FLOAT16)}  # that weights are quantized from
_NESTED = {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"}
_OFFSET_WIDTH = 24  # no number takes more characters
_STATE_LIMIT_BYTES = 2**16
_MAP_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Nf4Scheme:
    """How one weight is stored in NF4.

    Attributes:
        name: name of the weight, and of the tensor that contains its codes.
        shape: shape of the weight.
        dtype: data type that the weight was quantized from and is dequantized to.
        block_size: values that share a scale.
        double: whether the scales are quantized too.
        storage: data type that the bytes of the codes are stored as.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    block_size: int = 64
    double: bool = False
    storage: DType = UINT8
    kind: ClassVar[str] = "nf4"

    def specs(self) -> list[TensorSpec]:
        """The tensors that store the weight, in bitsandbytes' order; the codes come first."""
        count = math.prod(self.shape)
        blocks = -(-count // self.block_size)
        parts: list[tuple[str, int, DType]] = [
            (".absmax", blocks, UINT8 if self.double else FLOAT32),
            (".quant_map", len(QUANTILES), FLOAT32),
        ]
        if self.double:
            parts.append((".nested_absmax", -(-blocks // NESTED_BLOCK), FLOAT32))
            parts.append((".nested_quant_map", NESTED_CODES, FLOAT32))
        parts.append((STATE, len(self._state(0.0)), UINT8))
        codes = TensorSpec(self.name, (-(-count // 2) // self.storage.itemsize, 1), self.storage)
        return [codes, *(TensorSpec(f"{self.name}{end}", (size,), dtype) for end, size, dtype in parts)]

    def quantize(self, weight: "Tensor", importance: "Tensor | None" = None) -> "Nf4Blocks":
        """A weight with its nearest codes, and scales that serve the inputs by their second moments if given."""
        from eckart.linalg import nf4

        blocks = nf4.quantize(weight.float(), block_size=self.block_size, double=self.double, importance=importance)
        return replace(blocks, dtype=self.dtype.torch)

    def tensors(self, blocks: "Nf4Blocks") -> Iterator[tuple[str, "Tensor"]]:
        """The tensors of `specs` with the values of a quantized weight."""
        import torch

        from eckart.linalg.nf4 import CODEBOOK

        yield self.name, blocks.codes.view(-1).view(self.storage.torch)[:, None]
        yield f"{self.name}.absmax", blocks.absmax
        yield f"{self.name}.quant_map", CODEBOOK
        if blocks.nested_absmax is not None and blocks.nested_offset is not None:
            yield f"{self.name}.nested_absmax", blocks.nested_absmax
            yield f"{self.name}.nested_quant_map", blocks.nested_map
        offset = 0.0 if blocks.nested_offset is None else blocks.nested_offset.item()
        yield f"{self.name}{STATE}", torch.frombuffer(bytearray(self._state(offset)), dtype=torch.uint8)

    def _state(self, offset: float) -> bytes:
        """The JSON text, padded to one length for every offset, because headers are written before values."""
        state = {"quant_type": "nf4", "blocksize": self.block_size, "dtype": self.dtype.name, "shape": list(self.shape)}
        if not self.double:
            return json.dumps(state).encode()
        text = json.dumps(state | _NESTED | {"nested_offset": offset})
        return (text + " " * (_OFFSET_WIDTH - len(json.dumps(offset)))).encode()


def has_nf4(stored: Checkpoint) -> bool:
    """Whether any tensor is a weight in NF4."""
    return any(name.endswith(STATE) for name in stored.tensors)


def read_schemes(stored: Checkpoint) -> dict[str, Nf4Scheme]:
    """How each NF4 weight of a checkpoint is stored, by its name.

    Raises:
        FileFormatError: parts of weights are missing, damaged or disagree; every fault is listed.
    """
    schemes, faults = {}, []
    for state in stored.tensors:
        if state.endswith(STATE):
            name = state.removesuffix(STATE)
            try:
                schemes[name] = _scheme(stored, name)
            except ValueError as fault:
                faults.append(f"{name}: {fault}")
    if faults:
        msg = f"{stored.source}: NF4 weights that cannot be read"
        raise FileFormatError.listing(msg, faults)
    return schemes


def _scheme(stored: Checkpoint, name: str) -> Nf4Scheme:
    """How a weight is stored, checked against all of its tensors; ValueError says what does not fit."""
    state = state_of(stored, name)
    codes = stored.tensors.get(name)
    if codes is None:
        msg = "the codes are missing"
        raise ValueError(msg)
    double = any(field in state for field in (*_NESTED, "nested_offset"))
    shape = tuple(state["shape"])
    scheme = Nf4Scheme(name, shape, NF4_DTYPES[state["dtype"]], state["blocksize"], double, codes.dtype)
    faults = []
    if codes.nbytes != -(-math.prod(shape) // 2) or len(codes.shape) != 2 or codes.shape[1] != 1:
        faults.append(f"codes of shape {codes.shape}, {codes.dtype}, do not fit a weight of shape {shape}")
    for spec in scheme.specs()[1:-1]:
        info = stored.tensors.get(stored_name(stored, spec.name))
        if info is None or (info.shape, info.dtype) != (spec.shape, spec.dtype):
            actual = f"{info.shape}, {info.dtype}" if info else "missing"
            faults.append(f"{spec.name.removeprefix(name)[1:]} is {actual}, expected {spec.shape}, {spec.dtype}")
    if not faults:
        faults = _map_faults(stored, scheme)
    if faults:
        raise ValueError("; ".join(faults))
    return scheme


def stored_name(stored: Checkpoint, name: str) -> str:
    """Name of the stored tensor of a part: in a live model all weights share one map."""
    return stored.tied.get(name, name)


def _map_faults(stored: Checkpoint, scheme: Nf4Scheme) -> list[str]:
    faults, codebook = [], _numbers(stored, f"{scheme.name}.quant_map")
    if not all(abs(value - code) <= _MAP_TOLERANCE for value, code in zip(codebook, QUANTILES, strict=True)):
        faults.append("quant_map is not that of NF4")
    if scheme.double:
        steps = _numbers(stored, f"{scheme.name}.nested_quant_map")
        if not all(low < high for low, high in pairwise(steps)) or not -1 <= steps[0] <= steps[-1] <= 1:
            faults.append("nested_quant_map does not ascend from -1 to 1")
    return faults


def _numbers(stored: Checkpoint, name: str) -> list[float]:
    info = stored.tensors[stored_name(stored, name)]
    return info.dtype.unpack(stored.read_bytes(info.name))


def state_of(stored: Checkpoint, name: str) -> dict[str, Any]:
    """The JSON stored with a weight; ValueError if bitsandbytes does not write such."""
    info = stored.tensors[f"{name}{STATE}"]
    if info.dtype != UINT8 or info.nbytes > _STATE_LIMIT_BYTES:
        msg = f"the quantization state is {info.shape}, {info.dtype}, expected the bytes of a short text"
        raise ValueError(msg)
    try:
        state = parse_json(stored.read_bytes(info.name))
    except ValueError as error:
        msg = f"the quantization state is not JSON ({error})"
        raise ValueError(msg) from None
    if not isinstance(state, dict):
        msg = "the quantization state is not a JSON object"
        raise ValueError(msg)
    faults = [f"{field} is {str(state.get(field))[:60]}, expected {expected}" for field, expected in _unfit(state)]
    if faults:
        raise ValueError("; ".join(faults))
    return state


def _unfit(state: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Fields of a state with an invalid value, and what is expected."""
    shape, offset = state.get("shape"), state.get("nested_offset")
    sizes = shape if isinstance(shape, list) else []
    if state.get("quant_type") != "nf4":
        yield "quant_type", "nf4"
    if type(state.get("blocksize")) is not int or state["blocksize"] not in BLOCK_SIZES:
        yield "blocksize", f"one of {BLOCK_SIZES}"
    if not isinstance(state.get("dtype"), str) or state["dtype"] not in NF4_DTYPES:
        yield "dtype", " or ".join(NF4_DTYPES)
    if not 1 <= len(sizes) <= 8 or not all(type(size) is int and 0 < size < 2**48 for size in sizes):
        yield "shape", "1 to 8 positive sizes"
    if any(field in state for field in (*_NESTED, "nested_offset")):
        yield from ((field, str(value)) for field, value in _NESTED.items() if state.get(field) != value)
        if not isinstance(offset, float) or not math.isfinite(offset):
            yield "nested_offset", "a finite number"
