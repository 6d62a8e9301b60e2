"""The interface of a checkpoint: named tensors, read completely or by rows, wherever they are stored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from eckart.checkpoint.dtypes import DType

if TYPE_CHECKING:
    from torch import Tensor

Rows: TypeAlias = Callable[[int, int], "Tensor"]
"""Entries `start` to `stop` of the first dimension of a tensor."""


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says about one tensor.

    Attributes:
        dtype: the dtype that reading returns.
        nbytes: bytes in the file (for a quantized tensor, of its blocks).
        file: the file that contains it.
        quantization: name of the encoding or GGUF type if the tensor is dequantized when it is read; otherwise None.
        offset: where its bytes begin in a safetensors file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    nbytes: int
    file: Path
    quantization: str | None = None

    @property
    def stored(self) -> str:
        """The encoding, or the data type of plain values."""
        return self.quantization or self.dtype.name

    offset: int = 0


class Checkpoint(Protocol):
    """Weights that are read on demand. Reading is thread-safe.

    Attributes:
        source: the SOURCE as the user typed it.
        config: config.json of the folder, or the same keys from GGUF metadata; {} if there is none.
        tensors: every stored tensor in file order, from headers alone.
        tied: name that the files lack -> name of the stored tensor that it shares.
        kinds: module kinds of a live `nn.Module`; {} for files, which contain only names.
        folder: folder of the config and tokenizer files, if there is one.
        files: the files that are read: weights and config.
        metadata: texts in the headers of its safetensors files, by the file's name; {} for any other source.
    """

    source: str
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    tied: Mapping[str, str]
    kinds: Mapping[str, str]
    folder: Path | None
    files: tuple[Path, ...]
    metadata: Mapping[str, Mapping[str, str]]

    def read(self, name: str) -> "Tensor":
        """The complete tensor in the dtype that `tensors` states: the stored one, or what it is dequantized to."""
        ...

    def read_bytes(self, name: str) -> bytes:
        """The stored bytes of a tensor, read without torch: for small ones, such as scales and texts."""
        ...

    def rows(self, name: str, start: int, stop: int) -> "Tensor":
        """Entries `start` to `stop` of the first dimension, reading only their bytes."""
        ...

    def fingerprint(self) -> str:
        """A hex digest that changes when any file of the checkpoint changes."""
        ...


def check_rows(info: TensorInfo, start: int, stop: int) -> None:
    """Raise ValueError unless `start` to `stop` is a range of the tensor's first dimension."""
    if not info.shape:
        msg = f"{info.name} is a scalar and has no rows"
        raise ValueError(msg)
    if not 0 <= start <= stop <= info.shape[0]:
        msg = f"{info.name} has rows 0..{info.shape[0]}, got {start}..{stop}"
        raise ValueError(msg)
