"""A strict reader of GGUF headers with bounded memory: metadata scalars and the location of each tensor.

The reader of the `gguf` package maps the file, creates an object per token of the vocabulary and trusts any count that
a malicious file declares. This one reads the same bytes in order and stops at the first invalid one.
"""

import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from eckart.checkpoint.links import refuse_links
from eckart.checkpoint.opened import opened
from eckart.checkpoint.stamp import Stamp
from eckart.errors import FileFormatError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TEXT_LIMIT_BYTES = 16 * 2**20
_VERSIONS = (2, 3)
_MAX_PARTS = 1024
SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor; `shape` has the outermost dimension first, `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """A header: metadata (arrays are not read: None), tensors, and the stamp of the file when it was read."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    stamp: Stamp


def read_gguf_header(path: Path) -> GgufHeader:
    """Metadata and tensor table of a GGUF file.

    Raises:
        FileFormatError: the file is not GGUF version 2 or 3, is truncated, or is inconsistent.
    """
    try:
        with opened(path) as (file, stamp):
            return _Reader(file, path, stamp).header()
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise FileFormatError(msg) from None


def read_gguf_headers(path: Path) -> list[GgufHeader]:
    """The headers of all files of a model that llama.cpp may have split, the one with the metadata first.

    Raises:
        FileFormatError: a file is malformed or missing, or a link out of the folder.
    """
    header = read_gguf_header(path)
    count, match = header.metadata.get("split.count", 1), SPLIT_NAME.fullmatch(path.name)
    if count in (0, 1):
        if match is not None and int(match[3]) > 1:
            named = f"named as one of {int(match[3])} files of a split model"
            msg = f"{path}: {named}, and its metadata does not say so; if the model is whole, rename it"
            raise FileFormatError(msg)
        return [header]
    if type(count) is not int or count > _MAX_PARTS or match is None or int(match[3]) != count:
        msg = f"{path}: one of {count} files of a split model, which must be named NAME-00001-of-{count:0>5}.gguf"
        raise FileFormatError(msg)
    paths = [path.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        msg = f"{path}: one of {count} files of a split model; missing next to it: {', '.join(missing[:8])}"
        raise FileFormatError(msg)
    refuse_links((part for part in paths if part != path), path.parent)
    headers = [header if part == path else read_gguf_header(part) for part in paths]
    for number, part in enumerate(headers):
        if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (number, count):
            msg = f"{part.path}: its metadata does not say that it is file {number + 1} of {count} of a split model"
            raise FileFormatError(msg)
    found, stated = sum(len(part.tensors) for part in headers), header.metadata.get("split.tensors.count")
    if stated is not None and stated != found:
        msg = f"{path}: the files of the split model contain {found} tensors, and its metadata says {stated}"
        raise FileFormatError(msg)
    return headers


class _Reader:
    """A file cursor that checks every step against the file's size."""

    def __init__(self, file: BinaryIO, path: Path, stamp: Stamp) -> None:
        self.file = file
        self.path = path
        self.stamp = stamp
        self.left = self.stamp.size

    def header(self) -> GgufHeader:
        if self.bytes(4) != b"GGUF":
            self.refuse("not a GGUF file: it does not begin with 'GGUF'")
        version = self.scalar("I")
        if version not in _VERSIONS:
            self.refuse(f"GGUF version {version} is not supported; versions 2 and 3 (little-endian) are")
        tensor_count, field_count = self.scalar("Q"), self.scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(field_count):
            key = self.text()
            if key in metadata:
                self.refuse(f"duplicate metadata key {key!r}")
            metadata[key] = self.value(self.scalar("I"))
        infos = [self.tensor_info() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            self.refuse(f"general.alignment {alignment!r} is not a power of two")
        end = self.stamp.size - self.left
        start = -(-end // alignment) * alignment
        tensors = tuple(GgufTensor(name, shape, kind, start + offset) for name, shape, kind, offset in infos)
        if len({tensor.name for tensor in tensors}) < len(tensors):
            self.refuse("two tensors have the same name")
        return GgufHeader(self.path, metadata, tensors, self.stamp)

    def tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.text(), self.scalar("I")
        if dimensions > 4:
            self.refuse(f"tensor {name!r} has {dimensions} dimensions; GGUF allows at most 4")
        shape = tuple(self.scalar("Q") for _ in range(dimensions))[::-1]
        if math.prod(shape) >= 2**62:
            self.refuse(f"tensor {name!r} has the impossible shape {shape}")
        return name, shape, self.scalar("I"), self.scalar("Q")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.skip_array()
        if kind not in _SCALARS:
            self.refuse(f"metadata has the unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def skip_array(self) -> None:
        """Skip an array: reading weights needs none."""
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            for _ in range(count):
                self.skip(self.scalar("Q"))
        elif kind in _SCALARS:
            self.skip(count * struct.calcsize(f"<{_SCALARS[kind]}"))
        else:
            self.refuse(f"metadata has an array of the unknown type {kind}")

    def text(self) -> str:
        length = self.scalar("Q")
        if length > _TEXT_LIMIT_BYTES:
            self.refuse(f"a string of {length:,} bytes is declared")
        try:
            return self.bytes(length).decode()
        except UnicodeDecodeError:
            self.refuse("a string is not UTF-8")

    def scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}")))[0]

    def bytes(self, count: int) -> bytes:
        self.take(count)
        return self.file.read(count)

    def skip(self, count: int) -> None:
        self.take(count)
        # Reading short strings through the buffer is many times faster than seeking past each of them.
        if count < 4096:
            self.file.read(count)
        else:
            self.file.seek(count, os.SEEK_CUR)

    def take(self, count: int) -> None:
        if count > self.left:
            self.refuse("truncated, or its header declares more than the file contains")
        self.left -= count

    def refuse(self, fault: str) -> NoReturn:
        msg = f"{self.path}: {fault}"
        raise FileFormatError(msg) from None
