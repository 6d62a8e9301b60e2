"""A checkpoint written as it is computed: headers first, tensors in any order, whole or in blocks."""

import errno
import json
import math
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eckart.checkpoint.header import DTYPES

SHARD_BYTES = 5_000_000_000
_COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")
_NOT_COMPANIONS = ("*.index.json", "adapter_config.json")
_METADATA = {"format": "pt"}  # which transformers asks for
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written, known before its values are."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_shards(specs: Sequence[TensorSpec], shard_bytes: int = SHARD_BYTES) -> dict[str, list[TensorSpec]]:
    """What each weight file holds, by the file's name; a tensor larger than `shard_bytes` has a file of its own."""
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if shards[-1] and filled + spec.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{n:05}-of-{len(shards):05}.safetensors": shard for n, shard in enumerate(shards, start=1)}


def write_index(folder: Path, shards: Mapping[str, Sequence[TensorSpec]]) -> None:
    """The index of several weight files; one file needs none."""
    if len(shards) == 1:
        return
    weight_map = {spec.name: file for file, specs in shards.items() for spec in specs}
    total = sum(spec.nbytes for specs in shards.values() for spec in specs)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    stem = next(iter(shards)).partition("-0")[0]
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_tensors(
    file: Path, specs: Sequence[TensorSpec], tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]
) -> None:
    """One safetensors file, into a folder that is there: for use in `atomic_directory` and `atomic_file`."""
    with open_files(file.parent, {file.name: specs}, metadata) as files:
        _write_whole(files, tensors)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the config and tokenizer files of a model folder."""
    for file in {file for pattern in _COMPANIONS for file in source.glob(pattern)}:
        if file.is_file() and not any(file.match(pattern) for pattern in _NOT_COMPANIONS):
            shutil.copyfile(file, folder / file.name)


class _File:
    """A file open for writing until nobody refers to it: a thread that an interruption left behind may still write."""

    def __init__(self, path: Path) -> None:
        # Without O_BINARY, Windows would change every byte that looks like the end of a line.
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        self._seeking = threading.Lock()

    def write_at(self, data: memoryview, offset: int) -> None:
        """Write bytes at a place of the file; safe to call from several threads."""
        done = 0
        # One call writes at most 2 GiB.
        while done < len(data):
            if hasattr(os, "pwrite"):
                done += os.pwrite(self.descriptor, data[done:], offset + done)
                continue
            with self._seeking:  # on Windows
                os.lseek(self.descriptor, offset + done, os.SEEK_SET)
                done += os.write(self.descriptor, data[done:])

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@dataclass(frozen=True)
class _Place:
    """Where a tensor goes."""

    spec: TensorSpec
    file: _File
    offset: int


class TensorFiles:
    """Open weight files whose headers are written; their tensors come in any order, whole or in blocks.

    Safe to write to from several threads: every block has its own place.

    Attributes:
        is_new: whether a file had to be made; otherwise all were there, in full size, from an interrupted run.
    """

    def __init__(self, places: Mapping[str, _Place], *, is_new: bool) -> None:
        self.places = places
        self.is_new = is_new

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        """Write consecutive values of a tensor.

        Args:
            name: of the tensor.
            values: any shape, in the tensor's dtype.
            start: place of the first of them in the flattened tensor.

        Raises:
            ValueError: they are not values of such a tensor.
        """
        place = self.places.get(name)
        if place is None or values.dtype != place.spec.dtype or start + values.numel() > math.prod(place.spec.shape):
            expected = place.spec if place else "no such tensor"
            msg = f"{name}: {values.numel()} values from {start} on, {values.dtype}: expected {expected}"
            raise ValueError(msg)
        data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        place.file.write_at(data, place.offset + start * values.dtype.itemsize)


@contextmanager
def open_files(
    folder: Path, shards: Mapping[str, Sequence[TensorSpec]], metadata: Mapping[str, str] = _METADATA
) -> Iterator[TensorFiles]:
    """Weight files to fill, into a folder that is there; on the disk when the block ends well.

    What an interrupted run with the same `shards` has filled stays as it is.
    """
    places: dict[str, _Place] = {}
    files: list[_File] = []
    is_new = False
    for name, specs in shards.items():
        header, offsets = _header(specs, metadata)
        size = len(header) + sum(spec.nbytes for spec in specs)
        file = _File(folder / name)
        files.append(file)
        is_new |= os.fstat(file.descriptor).st_size != size
        file.write_at(memoryview(header), 0)
        _allocate(file.descriptor, size)
        places |= {spec.name: _Place(spec, file, offsets[spec.name]) for spec in specs}
    yield TensorFiles(places, is_new=is_new)
    for file in files:
        os.fsync(file.descriptor)


def _allocate(descriptor: int, size: int) -> None:
    """Give a file its size and its place on the disk: blocks that are there are written four times as fast."""
    os.ftruncate(descriptor, size)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:
        return  # not every system can
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """A file's header, and where in the file each tensor goes; wide dtypes first, so that all are aligned."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    begins, begin = {}, 0
    for spec in sorted(specs, key=lambda spec: -spec.dtype.itemsize):
        begins[spec.name], end = begin, begin + spec.nbytes
        table[spec.name] = {"dtype": _NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, {name: 8 + len(text) + place for name, place in begins.items()}


def _write_whole(files: TensorFiles, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write each tensor of the files once."""
    left = {name: place.spec for name, place in files.places.items()}
    for name, tensor in tensors:
        spec = left.pop(name, None)
        if spec is None or (tuple(tensor.shape), tensor.dtype) != (spec.shape, spec.dtype):
            expected = spec or "no such tensor, or it came before"
            msg = f"{name} of shape {tuple(tensor.shape)}, {tensor.dtype}: expected {expected}"
            raise ValueError(msg)
        files.write(name, tensor)
    if left:
        msg = f"{len(left)} tensors never came, the first is {next(iter(left))}"
        raise ValueError(msg)
