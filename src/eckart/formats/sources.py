"""An adapter or a checkpoint, however it is named: what a command that takes either was given."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import Checkpoint, open_checkpoint
from eckart.formats.files import load_adapter

Source = str | Path | Mapping[str, Tensor] | nn.Module | Adapter
Side = Adapter | Checkpoint


def open_adapter_or_checkpoint(source: Source) -> Side:
    """The adapter or the checkpoint that a SOURCE is; of files only headers are read.

    Raises:
        SourceError, FileFormatError: it cannot be read.
    """
    if isinstance(source, Adapter):
        return source
    opened = open_checkpoint(source)
    if not isinstance(source, (str, Path)) or not any(".lora" in name for name in opened.tensors):
        return opened
    in_folder = opened.folder and (opened.folder / "adapter_config.json").is_file()
    return load_adapter(opened.folder if in_folder and opened.folder else source)


def name_of(source: Source) -> str:
    """What a message calls it."""
    if isinstance(source, Adapter):
        return "<adapter>"
    return str(source) if isinstance(source, (str, Path)) else f"<{type(source).__name__}>"
