"""Opening a checkpoint, in whatever form it is given."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.encodings.decode import decoded
from eckart.checkpoint.pipeline import PipelineCheckpoint, pipeline_folders
from eckart.checkpoint.reader import SafetensorsCheckpoint
from eckart.checkpoint.remote.table import named_by_urls
from eckart.checkpoint.source import local_path, locate, shown_source

if TYPE_CHECKING:
    from torch import Tensor, nn

# A name, path or URL of files, or weights in memory. Torch's types are text, so that defining it does not import them.
ModelSource: TypeAlias = Union[str, Path, "Mapping[str, Tensor]", "nn.Module"]


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Open a SOURCE, a state dict or a module; of files, only headers and configs are read, without torch.

    Raises:
        SourceError: nothing readable is there; the message says what a SOURCE may be.
        FileFormatError: files are malformed; all faults together.
        MissingExtraError: a GGUF file without the `gguf` package.
    """
    with named_by_urls():
        if isinstance(source, (str, Path)) and (folders := pipeline_folders(folder := local_path(source))):
            parts = {name: open_checkpoint(part) for name, part in folders.items()}
            return PipelineCheckpoint(shown_source(source), folder, parts)
        return decoded(_open_stored(source))


def _open_stored(source: ModelSource) -> Checkpoint:
    if not isinstance(source, (str, Path)):
        from eckart.checkpoint.memory import MemoryCheckpoint

        return MemoryCheckpoint(source)
    files = locate(source)
    if files.is_gguf:
        from eckart.checkpoint.gguf import GgufCheckpoint

        return GgufCheckpoint(shown_source(source), files.weights[0])
    return SafetensorsCheckpoint(shown_source(source), files)
