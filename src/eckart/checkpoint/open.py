"""The one way in: whatever a user calls a checkpoint, as a `Checkpoint`."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.gguf import GgufCheckpoint
from eckart.checkpoint.memory import MemoryCheckpoint
from eckart.checkpoint.nf4 import Nf4Checkpoint
from eckart.checkpoint.nf4_scheme import holds_nf4
from eckart.checkpoint.reader import SafetensorsCheckpoint
from eckart.checkpoint.source import locate


def open_checkpoint(source: str | Path | Mapping[str, Tensor] | nn.Module) -> Checkpoint:
    """Open a SOURCE, a state dict or a module; of files, only headers and configs are read.

    Raises:
        SourceError: nothing readable is there; the message says what a SOURCE may be.
        FileFormatError: files are malformed; all faults together.
        MissingExtraError: a GGUF file without the `gguf` package.
    """
    stored = _open_stored(source)
    return Nf4Checkpoint(stored) if holds_nf4(stored) else stored


def _open_stored(source: str | Path | Mapping[str, Tensor] | nn.Module) -> Checkpoint:
    if isinstance(source, (Mapping, nn.Module)):
        return MemoryCheckpoint(source)
    files = locate(source)
    if files.is_gguf:
        return GgufCheckpoint(str(source), files.weights[0])
    return SafetensorsCheckpoint(str(source), files)
