"""A checkpoint written as it is computed: headers first, tensors in any order, all or nothing."""

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eckart.checkpoint.header import DTYPES
from eckart.checkpoint.output import atomic_directory, check_output

SHARD_BYTES = 5_000_000_000
_COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja")
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


def write_checkpoint(
    path: Path,
    specs: Sequence[TensorSpec],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    shard_bytes: int = SHARD_BYTES,
    companions: Path | None = None,
    force: bool = False,
) -> None:
    """Write a folder in Hugging Face layout that appears under `path` once it is complete.

    One tensor at a time is in memory; they may come in any order.

    Args:
        path: the folder to make.
        specs: every tensor, in the order of the files.
        tensors: each name of `specs` once, with its values.
        shard_bytes: upper size of a shard, which a larger single tensor exceeds.
        companions: folder whose config and tokenizer files are copied.
        force: replace an existing result.

    Raises:
        OutputError: the output must not, or cannot, be written; nothing is left behind.
        ValueError: `tensors` does not hold what `specs` says.
    """
    check_output(path, sum(spec.nbytes for spec in specs), force=force, inputs=[companions])
    with atomic_directory(path, force=force) as folder:
        write_shards(folder, specs, tensors, shard_bytes=shard_bytes)
        if companions:
            copy_companions(companions, folder)


def write_shards(
    folder: Path,
    specs: Sequence[TensorSpec],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """The weight files of `write_checkpoint`, into a folder that is there: for use in `atomic_directory`."""
    shards = _shards(specs, shard_bytes)
    placed: dict[str, _Place] = {}
    for number, shard in enumerate(shards, start=1):
        single = len(shards) == 1
        name = "model.safetensors" if single else f"model-{number:05}-of-{len(shards):05}.safetensors"
        placed |= _write_header(folder / name, shard, _METADATA)
    _write_data(placed, tensors)
    if len(shards) > 1:
        _write_index(folder, placed)


def write_tensors(
    file: Path, specs: Sequence[TensorSpec], tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]
) -> None:
    """One safetensors file, into a folder that is there: for use in `atomic_directory` and `atomic_file`."""
    _write_data(_write_header(file, specs, metadata), tensors)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the config and tokenizer files of a model folder."""
    for file in {file for pattern in _COMPANIONS for file in source.glob(pattern)}:
        if file.is_file() and not any(file.match(pattern) for pattern in _NOT_COMPANIONS):
            shutil.copyfile(file, folder / file.name)


@dataclass(frozen=True)
class _Place:
    """Where a tensor goes."""

    spec: TensorSpec
    file: Path
    offset: int


def _shards(specs: Sequence[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if shards[-1] and filled + spec.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.nbytes
    return shards


def _write_header(file: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> dict[str, _Place]:
    """Write a file's header and return where its tensors go; wide dtypes first, so that all are aligned."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    begin = 0
    ordered = sorted(specs, key=lambda spec: -spec.dtype.itemsize)
    for spec in ordered:
        end = begin + spec.nbytes
        table[spec.name] = {"dtype": _NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    places, offset = {}, 8 + len(text)
    for spec in ordered:
        places[spec.name] = _Place(spec, file, offset)
        offset += spec.nbytes
    return places


def _write_data(placed: dict[str, _Place], tensors: Iterable[tuple[str, Tensor]]) -> None:
    files = {place.file for place in placed.values()}
    left = dict(placed)
    descriptors = {file: os.open(file, os.O_WRONLY) for file in files}
    try:
        for name, tensor in tensors:
            place = left.pop(name, None)
            if place is None or (tuple(tensor.shape), tensor.dtype) != (place.spec.shape, place.spec.dtype):
                expected = place.spec if place else "no such tensor, or it came before"
                msg = f"{name} of shape {tuple(tensor.shape)}, {tensor.dtype}: expected {expected}"
                raise ValueError(msg)
            _write_at(descriptors[place.file], tensor, place.offset)
        if left:
            msg = f"{len(left)} tensors never came, the first is {next(iter(left))}"
            raise ValueError(msg)
        for descriptor in descriptors.values():
            os.fsync(descriptor)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _write_at(descriptor: int, tensor: Tensor, offset: int) -> None:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    done = 0
    # One call writes at most 2 GiB.
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def _write_index(folder: Path, placed: dict[str, _Place]) -> None:
    index = {
        "metadata": {"total_size": sum(place.spec.nbytes for place in placed.values())},
        "weight_map": {name: place.file.name for name, place in sorted(placed.items())},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
