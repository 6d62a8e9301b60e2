"""Safetensors checkpoints: headers are checked once, data is read by position into new memory."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.checkpoint import TensorInfo, check_rows
from eckart.checkpoint.header import Header, read_headers
from eckart.checkpoint.inputs import FilesOnEveryNode, files_digest
from eckart.checkpoint.model_config import read_config
from eckart.checkpoint.remote.table import remote_file
from eckart.checkpoint.remote.transport import changed
from eckart.checkpoint.source import SourceFiles
from eckart.checkpoint.stamp import Stamp
from eckart.checkpoint.tying import tied_weights
from eckart.errors import FileFormatError

if TYPE_CHECKING:
    from torch import Tensor


class SafetensorsCheckpoint(FilesOnEveryNode):
    """A checkpoint of one or more .safetensors files; see `Checkpoint` for the attributes.

    Raises:
        FileFormatError: with the faults of all files together.
    """

    def __init__(self, source: str, files: SourceFiles) -> None:
        headers, faults = [], []
        for header, header_faults in read_headers(files.weights):
            faults += header_faults
            headers += [header] if header else []
        if not faults:
            faults = _index_faults(headers, files)
        if faults:
            msg = f"{source}: not a usable safetensors checkpoint"
            raise FileFormatError.listing(msg, faults)
        self.source = source
        self.folder: Path | None = files.folder
        config = files.folder / "config.json"
        self.files: tuple[Path, ...] = (*files.weights, *([config] if config.is_file() else []))
        self.config: dict[str, Any] = read_config(files.folder)
        self.kinds: Mapping[str, str] = {}
        self.metadata: Mapping[str, Mapping[str, str]] = {header.path.name: header.metadata for header in headers}
        self.tensors: Mapping[str, TensorInfo] = {info.name: info for header in headers for info in header.tensors}
        self._stamps = {header.path: header.stamp for header in headers}
        for header in headers:
            if remote := remote_file(header.path):
                remote.set_tensors((info.offset, info.offset + info.nbytes) for info in header.tensors)
        self.tied: Mapping[str, str] = tied_weights(self.tensors, self.config)

    def read(self, name: str) -> "Tensor":
        """The complete tensor in its stored dtype."""
        info = self.tensors[name]
        return self._read(info, info.offset, info.nbytes).view(info.dtype.torch).reshape(info.shape)

    def read_bytes(self, name: str) -> bytes:
        """The stored bytes of a tensor."""
        info = self.tensors[name]
        buffer = bytearray(info.nbytes)
        read_into(memoryview(buffer), info.file, info.offset, stamp=self._stamps[info.file])
        return bytes(buffer)

    def rows(self, name: str, start: int, stop: int) -> "Tensor":
        """Entries `start` to `stop` of the first dimension in the stored dtype."""
        info = self.tensors[name]
        check_rows(info, start, stop)
        row_bytes = info.nbytes // max(info.shape[0], 1)
        data = self._read(info, info.offset + start * row_bytes, (stop - start) * row_bytes)
        return data.view(info.dtype.torch).reshape(stop - start, *info.shape[1:])

    def fingerprint(self) -> str:
        """Digest of the files as they are now."""
        return files_digest(self.files)

    def _read(self, info: TensorInfo, offset: int, nbytes: int) -> "Tensor":
        return read_range(info.file, offset, nbytes, stamp=self._stamps[info.file])


def _index_faults(headers: list[Header], files: SourceFiles) -> list[str]:
    """Tensors in several shards, and index entries that name the wrong shard."""
    tensors = [info for header in headers for info in header.tensors]
    shard_of = {info.name: info.file for info in tensors}
    counts = Counter(info.name for info in tensors)
    faults = [f"tensor {name!r} is in {count} shards" for name, count in counts.items() if count > 1]
    for name, file in files.weight_map.items():
        if shard_of.get(name) != files.folder / file and counts[name] <= 1:
            actual = f"; it is in {shard_of[name].name}" if name in shard_of else ""
            faults.append(f"the index lists {name!r} in {file}, which does not contain it{actual}")
    return faults


def read_range(path: Path, offset: int, nbytes: int, *, stamp: Stamp) -> "Tensor":
    """Bytes of a file as a new uint8 tensor, never a memory map: memory use is what is being read.

    Raises:
        FileFormatError: the file is no longer the one whose header was read (`stamp`).
    """
    import torch

    buffer = torch.empty(nbytes, dtype=torch.uint8)
    read_into(memoryview(buffer.numpy().data), path, offset, stamp=stamp)
    return buffer


def read_into(buffer: memoryview, path: Path, offset: int, *, stamp: Stamp) -> None:
    """Fill `buffer` with the bytes of a file from `offset` on (errors as `read_range`).

    Every call opens the file, so threads share no position in it.
    """
    if (remote := remote_file(path)) and not remote.is_local:
        if remote.stamp != stamp:
            raise changed(remote.shown)
        remote.read_into(buffer, offset)
        return
    done = 0
    try:
        with path.open("rb", buffering=0) as file:
            unchanged = remote is not None or Stamp.of(file.fileno()) == stamp
            file.seek(offset)
            # One call returns at most 2 GiB.
            while unchanged and done < len(buffer):
                count = file.readinto(buffer[done:]) or 0
                unchanged = count > 0
                done += count
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise FileFormatError(msg) from None
    if not unchanged:
        msg = f"{path}: the file changed while it was being read; run again when nothing writes to it"
        raise FileFormatError(msg)
