"""Data types of stored tensors, described without torch: headers, plans and options use these, tensors use torch's."""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eckart.errors import OptionError

if TYPE_CHECKING:
    import torch

_STRUCT_CODES = {
    "float64": "d",
    "float32": "f",
    "float16": "e",
    "int64": "q",
    "int32": "i",
    "int16": "h",
    "int8": "b",
    "uint64": "Q",
    "uint32": "I",
    "uint16": "H",
    "uint8": "B",
    "bool": "?",
}


@dataclass(frozen=True, eq=False)
class DType:
    """A data type by torch's name for it. Comparing one with a `torch.dtype` raises TypeError: use `.torch` or `of`.

    Attributes:
        name: such as `bfloat16`.
        itemsize: bytes of one value; of a packed type, of one group of values.
        is_floating_point: whether each value is a real floating-point number by itself.
    """

    name: str
    itemsize: int
    is_floating_point: bool

    @property
    def torch(self) -> "torch.dtype":
        """The same data type in torch, which is imported here; uint8 for one that this torch does not have."""
        import torch

        return getattr(torch, self.name, torch.uint8)

    @classmethod
    def of(cls, dtype: "DType | torch.dtype | str") -> "DType":
        """The data type of a torch dtype or of a name such as `bfloat16`.

        Raises:
            OptionError: no data type has this name.
        """
        if isinstance(dtype, DType):
            return dtype
        name = str(dtype).removeprefix("torch.")
        if name in _NAMED:
            return _NAMED[name]
        if isinstance(dtype, str):
            msg = f"unknown data type {dtype!r}; use one of {', '.join(_NAMED)}"
            raise OptionError(msg)
        return cls(name, dtype.itemsize, dtype.is_floating_point)

    def unpack(self, data: bytes) -> list[float]:
        """The numbers in little-endian bytes, for tensors of a few values.

        Raises:
            ValueError: not a data type that Python numbers can express.
        """
        if self.name == "bfloat16":  # the upper half of a float32
            data = b"".join(b"\0\0" + data[start : start + 2] for start in range(0, len(data), 2))
            return FLOAT32.unpack(data)
        code = _STRUCT_CODES.get(self.name)
        if code is None:
            msg = f"values of type {self} cannot be read as single numbers"
            raise ValueError(msg)
        return [float(value) for value in struct.unpack(f"<{len(data) // self.itemsize}{code}", data)]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DType):
            return self.name == other.name
        if type(other).__module__ == "torch" and type(other).__name__ == "dtype":
            msg = f"comparing DType {self} with {other}; compare `.torch`, or DType.of of the other"
            raise TypeError(msg)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name


FLOAT64 = DType("float64", 8, is_floating_point=True)
FLOAT32 = DType("float32", 4, is_floating_point=True)
FLOAT16 = DType("float16", 2, is_floating_point=True)
BFLOAT16 = DType("bfloat16", 2, is_floating_point=True)
FLOAT8_E4M3FN = DType("float8_e4m3fn", 1, is_floating_point=True)
FLOAT8_E5M2 = DType("float8_e5m2", 1, is_floating_point=True)
FLOAT8_E4M3FNUZ = DType("float8_e4m3fnuz", 1, is_floating_point=True)
FLOAT8_E5M2FNUZ = DType("float8_e5m2fnuz", 1, is_floating_point=True)
# Stored and copied only: scales, codes that need scales, and complex numbers.
FLOAT8_E8M0FNU = DType("float8_e8m0fnu", 1, is_floating_point=False)
FLOAT4_E2M1FN_X2 = DType("float4_e2m1fn_x2", 1, is_floating_point=False)
FLOAT6_E2M3 = DType("float6_e2m3", 1, is_floating_point=False)
FLOAT6_E3M2 = DType("float6_e3m2", 1, is_floating_point=False)
COMPLEX64 = DType("complex64", 8, is_floating_point=False)
INT64 = DType("int64", 8, is_floating_point=False)
INT32 = DType("int32", 4, is_floating_point=False)
INT16 = DType("int16", 2, is_floating_point=False)
INT8 = DType("int8", 1, is_floating_point=False)
UINT64 = DType("uint64", 8, is_floating_point=False)
UINT32 = DType("uint32", 4, is_floating_point=False)
UINT16 = DType("uint16", 2, is_floating_point=False)
UINT8 = DType("uint8", 1, is_floating_point=False)
BOOL = DType("bool", 1, is_floating_point=False)
_FLOAT8 = (FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT8_E4M3FNUZ, FLOAT8_E5M2FNUZ)
_FLOATING = (FLOAT64, FLOAT32, FLOAT16, BFLOAT16, *_FLOAT8)
_OTHER = (INT64, INT32, INT16, INT8, UINT64, UINT32, UINT16, UINT8, BOOL)
COPIED = (FLOAT8_E8M0FNU, FLOAT4_E2M1FN_X2, FLOAT6_E2M3, FLOAT6_E3M2, COMPLEX64)
_NAMED = {dtype.name: dtype for dtype in (*_FLOATING, *_OTHER, *COPIED)}


def promote(*dtypes: DType) -> DType:
    """The narrowest data type that represents the values of all given ones, as `torch.promote_types` defines it."""
    first, *rest = dtypes
    if all(dtype == first for dtype in rest):
        return first
    if all(dtype in (FLOAT64, FLOAT32, FLOAT16, BFLOAT16) for dtype in dtypes):
        if FLOAT64 in dtypes:
            return FLOAT64
        return FLOAT32  # also of float16 with bfloat16: neither represents the other's values
    import torch

    common = first.torch
    for dtype in rest:
        common = torch.promote_types(common, dtype.torch)
    return DType.of(common)
