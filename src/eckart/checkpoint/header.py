"""A safetensors header, read strictly: every fault is named before a byte of data is touched.

The format: 8 bytes of little-endian header length, a JSON object `name -> {dtype, shape, data_offsets}`, then
the data without holes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from eckart.checkpoint import dtypes
from eckart.checkpoint.checkpoint import TensorInfo
from eckart.checkpoint.json_files import parse_json
from eckart.checkpoint.opened import opened
from eckart.checkpoint.remote.table import remote_file
from eckart.checkpoint.remote.transport import CONNECTIONS
from eckart.checkpoint.stamp import Stamp
from eckart.errors import FileFormatError

HEADER_LIMIT_BYTES = 100_000_000
DTYPES = {
    "F64": dtypes.FLOAT64,
    "F32": dtypes.FLOAT32,
    "F16": dtypes.FLOAT16,
    "BF16": dtypes.BFLOAT16,
    "F8_E4M3": dtypes.FLOAT8_E4M3FN,
    "F8_E5M2": dtypes.FLOAT8_E5M2,
    "F8_E4M3FNUZ": dtypes.FLOAT8_E4M3FNUZ,
    "F8_E5M2FNUZ": dtypes.FLOAT8_E5M2FNUZ,
    "F8_E8M0": dtypes.FLOAT8_E8M0FNU,
    "F6_E2M3": dtypes.FLOAT6_E2M3,
    "F6_E3M2": dtypes.FLOAT6_E3M2,
    "F4": dtypes.FLOAT4_E2M1FN_X2,
    "C64": dtypes.COMPLEX64,
    "I64": dtypes.INT64,
    "I32": dtypes.INT32,
    "I16": dtypes.INT16,
    "I8": dtypes.INT8,
    "U64": dtypes.UINT64,
    "U32": dtypes.UINT32,
    "U16": dtypes.UINT16,
    "U8": dtypes.UINT8,
    "BOOL": dtypes.BOOL,
}
PACKED = {"F4": (2, 1), "F6_E2M3": (4, 3), "F6_E3M2": (4, 3)}  # so many values in so many bytes


@dataclass(frozen=True)
class Header:
    """A valid header: its tensors in file order, its texts, and the stamp of the file when it was read.

    The last size of a tensor of a packed type counts bytes.
    """

    path: Path
    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    stamp: Stamp


def _refuse(fault: str) -> NoReturn:
    """Refuse a header, or an entry of it; `read_header` adds the name of the file."""
    raise FileFormatError(fault)


def read_header(path: Path) -> tuple[Header | None, list[str]]:
    """The header of a .safetensors file, or the faults that make it unusable, each naming the file."""
    try:
        with opened(path) as (file, stamp):
            length = int.from_bytes(file.read(8), "little")
            if stamp.size < 8:
                _refuse("truncated: shorter than the 8 bytes of the header length")
            if not 2 <= length <= min(HEADER_LIMIT_BYTES, stamp.size - 8):
                _refuse(
                    f"not a safetensors file, or truncated: it declares a header of {length:,} bytes "
                    f"in a file of {stamp.size:,}"
                )
            text = file.read(length)
        table = _parse_json(text)
    except OSError as error:
        return None, [f"{path}: cannot be read ({error.strerror})"]
    except FileFormatError as fault:
        return None, [f"{path}: {fault}"]
    metadata = table.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # MLX writes null
    start, faults, tensors = 8 + length, [], []
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        faults.append("__metadata__ is not an object of texts")
    for name, fields in table.items():
        try:
            tensors.append(_tensor(name, fields, path, start))
        except FileFormatError as fault:
            faults.append(f"tensor {name!r}: {fault}")
    tensors.sort(key=lambda info: (info.offset, info.nbytes))
    faults = faults or _layout_faults(tensors, start, stamp.size)
    if faults:
        return None, [f"{path}: {fault}" for fault in faults]
    return Header(path, tuple(tensors), metadata, stamp), []


def read_headers(paths: Sequence[Path]) -> list[tuple[Header | None, list[str]]]:
    """The header of each file, as `read_header`; those of remote files at once."""
    if not any(remote_file(path) for path in paths):
        return [read_header(path) for path in paths]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(read_header, paths))


def _parse_json(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        _refuse("not a safetensors file: the header does not begin with '{'")
    try:
        return parse_json(text)
    except ValueError as error:
        _refuse(f"the header is not valid JSON ({error})")


def _tensor(name: str, fields: Any, path: Path, start: int) -> TensorInfo:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        _refuse("expected exactly dtype, shape and data_offsets")
    dtype = DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        _refuse(f"dtype {fields['dtype']!r} is unknown; expected one of {', '.join(DTYPES)}")
    shape, offsets = fields["shape"], fields["data_offsets"]
    # `type(n) is int`: a JSON true is an int to Python, and a shape of True would pass.
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        _refuse(f"shape {shape!r} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        _refuse(f"data_offsets {offsets!r} is not a begin and an end")
    begin, end = offsets
    if fields["dtype"] in PACKED and shape:
        values, size = PACKED[fields["dtype"]]
        if shape[-1] % values:
            _refuse(f"rows of {shape[-1]} do not fill whole bytes of {fields['dtype']}")
        shape = [*shape[:-1], shape[-1] // values * size]
    nbytes = math.prod(shape) * dtype.itemsize
    if end - begin != nbytes:
        _refuse(f"data_offsets hold {end - begin:,} bytes, shape {shape} in {fields['dtype']} needs {nbytes:,}")
    return TensorInfo(name, tuple(shape), dtype, nbytes, path, offset=start + begin)


def _layout_faults(tensors: list[TensorInfo], start: int, size: int) -> list[str]:
    """Overlaps, holes and data beyond the file, of tensors in the order of their offsets."""
    faults, position = [], start
    for info in tensors:
        if info.offset < position:
            faults.append(f"tensor {info.name!r} overlaps the tensor before it")
        elif info.offset > position:
            faults.append(f"{info.offset - position:,} bytes before tensor {info.name!r} belong to no tensor")
        position = max(position, info.offset + info.nbytes)
    if position > size:
        faults.append(f"truncated: the tensors need {position:,} bytes, the file has {size:,}")
    elif position < size:
        faults.append(f"{size - position:,} bytes after the last tensor belong to no tensor")
    return faults
