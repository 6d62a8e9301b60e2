"""Writing a checkpoint while it is computed: headers first, tensors in any order, complete or in blocks."""

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.dtypes import DType
from eckart.checkpoint.header import DTYPES, PACKED
from eckart.errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 5_000_000_000
END_BYTES = 4096
_INODE = "inode"  # in the state of a file that is sent to another machine
_METADATA = {"format": "pt"}  # required by transformers
_CODES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and data type of a tensor to be written.

    Attributes:
        key: its name in the file, if that is another: a pipeline's models name their tensors without their folder.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    key: str | None = None

    @classmethod
    def of(cls, name: str, tensor: "Tensor") -> "TensorSpec":
        """The specification of a tensor that is given."""
        return cls(name, tuple(tensor.shape), DType.of(tensor.dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_shards(specs: Sequence[TensorSpec], shard_bytes: int = SHARD_BYTES) -> dict[str, list[TensorSpec]]:
    """Tensors of each weight file, by file name; a tensor larger than `shard_bytes` gets its own file."""
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
    """The index of several weight files of a folder or subfolder; one file needs none."""
    folders: dict[str, dict[str, Sequence[TensorSpec]]] = {}
    for file, specs in shards.items():
        folders.setdefault(str(PurePosixPath(file).parent), {})[file] = specs
    for own in folders.values():
        if len(own) > 1:
            named = ((PurePosixPath(file).name, spec) for file, specs in own.items() for spec in specs)
            weight_map = {spec.key or spec.name: file for file, spec in named}
            total = sum(spec.nbytes for specs in own.values() for spec in specs)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (folder / index_name(own)).write_text(json.dumps(index, indent=2) + "\n")


def index_name(shards: Iterable[str]) -> str:
    """The name of the index of these weight files."""
    return f"{next(iter(shards)).partition('-0')[0]}.safetensors.index.json"


def write_tensors(
    file: Path, specs: Sequence[TensorSpec], tensors: Iterable[tuple[str, "Tensor"]], metadata: Mapping[str, str]
) -> None:
    """Write one safetensors file into an existing folder: for use in `atomic_directory` and `atomic_file`.

    Raises:
        NotFiniteError: a tensor contains NaN or Inf.
    """
    with open_files(file.parent, {file.name: specs}, {file.name: metadata}) as files:
        _write_each(files, tensors)


class _File:
    """A file of a fixed size that is opened for each write: a model may have more shards than a process may open.

    A thread that still writes after an interruption finds no file once it was renamed or removed.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        with self.opened(os.O_CREAT) as descriptor:
            self.is_new = os.fstat(descriptor).st_size != size
            _allocate(descriptor, size)

    def __getstate__(self) -> dict[str, Any]:
        """What another machine needs to write into the same file."""
        return self.__dict__ | {_INODE: self.path.stat().st_ino}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Refuse a file that is only called the same.

        Raises:
            OutputError: it is not on a file system that both machines share.
        """
        inode = state.pop(_INODE)
        self.__dict__.update(state)
        if not self.path.is_file() or self.path.stat().st_ino != inode:
            msg = (
                f"{self.path.parent} is not the same folder as where the work was started: every node writes into it, "
                "so the output must be on a file system that they share"
            )
            raise OutputError(msg)

    @contextmanager
    def opened(self, flags: int = 0) -> Iterator[int]:
        """A descriptor of its own, so that several threads may write at once."""
        # Without O_BINARY, Windows would change every byte that looks like the end of a line.
        descriptor = os.open(self.path, os.O_WRONLY | getattr(os, "O_BINARY", 0) | flags, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def write_at(self, data: memoryview, offset: int) -> None:
        """Write bytes at an offset."""
        with self.opened() as descriptor:
            os.lseek(descriptor, offset, os.SEEK_SET)
            done = 0
            # One call writes at most 2 GiB.
            while done < len(data):
                done += os.write(descriptor, data[done:])

    def read_at(self, count: int, offset: int) -> bytes:
        """Read bytes at an offset."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(count)

    def sync(self) -> None:
        """Wait until all of the file is on the disk."""
        with self.opened() as descriptor:
            os.fsync(descriptor)


@dataclass(frozen=True)
class _Destination:
    """File and offset that a tensor is written to."""

    spec: TensorSpec
    file: _File
    offset: int


class TensorFiles:
    """Open weight files whose headers are written; tensors follow in any order, complete or in blocks.

    Several threads may write at once: every block has its own offset.

    Attributes:
        is_new: whether a file had to be created; otherwise all exist in full size, from an interrupted run.
    """

    def __init__(self, destinations: Mapping[str, _Destination], *, is_new: bool) -> None:
        self.destinations = destinations
        self.is_new = is_new

    def write(self, name: str, values: "Tensor", start: int = 0) -> None:
        """Write consecutive values of a tensor.

        Args:
            name: name of the tensor.
            values: values of any shape, in the tensor's dtype.
            start: index of the first of them in the flattened tensor.

        Raises:
            ValueError: the tensor has no such values.
        """
        import torch

        target = self.destinations.get(name)
        spec = target.spec if target else None
        fits = spec and values.dtype == spec.dtype.torch and start + values.numel() <= math.prod(spec.shape)
        if target is None or not fits:
            expected = spec or "no such tensor"
            msg = f"{name}: {values.numel()} values from {start} on, {values.dtype}: expected {expected}"
            raise ValueError(msg)
        data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        target.file.write_at(data, target.offset + start * values.dtype.itemsize)

    def sync(self, names: Iterable[str]) -> None:
        """Wait until the files of these tensors are on the disk."""
        for file in {target.file.path: target.file for target in (self.destinations[name] for name in names)}.values():
            file.sync()

    def ends_digest(self, names: Iterable[str]) -> str:
        """A digest of the first and last bytes of tensors, which shows after an interruption whether they are there."""
        digest = hashlib.sha256()
        for target in (self.destinations[name] for name in names):
            count = min(END_BYTES, target.spec.nbytes)
            for offset in (target.offset, target.offset + target.spec.nbytes - count):
                digest.update(target.file.read_at(count, offset))
        return digest.hexdigest()


@contextmanager
def open_files(
    folder: Path, shards: Mapping[str, Sequence[TensorSpec]], metadata: Mapping[str, Mapping[str, str]] | None = None
) -> Iterator[TensorFiles]:
    """Weight files to fill in an existing folder; they are synced to disk when the block ends without an error.

    Values that an interrupted run with the same `shards` has written stay as they are. `metadata` are texts for the
    header of each file, by its name; by default those that transformers requires.
    """
    destinations: dict[str, _Destination] = {}
    files: list[_File] = []
    is_new = False
    for name, specs in shards.items():
        header, offsets = _header(specs, (metadata or {}).get(name, _METADATA))
        size = len(header) + sum(spec.nbytes for spec in specs)
        (folder / name).parent.mkdir(exist_ok=True)
        file = _File(folder / name, size)
        files.append(file)
        is_new |= file.is_new
        file.write_at(memoryview(header), 0)
        destinations |= {spec.name: _Destination(spec, file, offsets[spec.name]) for spec in specs}
    yield TensorFiles(destinations, is_new=is_new)
    for file in files:
        file.sync()


def _allocate(descriptor: int, size: int) -> None:
    """Reserve a file's size on disk: allocated blocks are written four times as fast."""
    os.ftruncate(descriptor, size)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:
        return  # Windows and macOS do not have it
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """A file's header, and the offset of each tensor; wide data types come first, so that all are aligned."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    begins, begin = {}, 0
    for spec in sorted(specs, key=lambda spec: -spec.dtype.itemsize):
        begins[spec.name], end = begin, begin + spec.nbytes
        code = _CODES[spec.dtype]
        shape = list(spec.shape)
        if code in PACKED and shape:
            values, size = PACKED[code]
            shape[-1] = shape[-1] // size * values
        table[spec.key or spec.name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, {name: 8 + len(text) + start for name, start in begins.items()}


def _write_each(files: TensorFiles, tensors: Iterable[tuple[str, "Tensor"]]) -> None:
    """Write each tensor of the files once, checked to be finite."""
    from eckart.linalg.finite import require_finite  # imports torch

    missing = {name: target.spec for name, target in files.destinations.items()}
    for name, tensor in tensors:
        spec = missing.pop(name, None)
        if spec is None or (tuple(tensor.shape), tensor.dtype) != (spec.shape, spec.dtype.torch):
            expected = spec or "no such tensor, or it was written before"
            msg = f"{name} of shape {tuple(tensor.shape)}, {tensor.dtype}: expected {expected}"
            raise ValueError(msg)
        require_finite(tensor, name)
        files.write(name, tensor)
    if missing:
        msg = f"{len(missing)} tensors are missing, the first is {next(iter(missing))}"
        raise ValueError(msg)
