"""What a SOURCE is, a model or an adapter, and the refusal where a command needs the other."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import Checkpoint, locate, open_checkpoint
from eckart.checkpoint.open import ModelSource
from eckart.checkpoint.pipeline import COMPONENTS, pipeline_folders
from eckart.checkpoint.remote.table import named_by_urls
from eckart.checkpoint.source import local_path, shown_source
from eckart.errors import OptionError, SourceError
from eckart.formats.files import is_adapter_file, load_adapter, nested_adapter
from eckart.formats.lora_keys import is_adapter_key
from eckart.formats.table import CONFIG

Source: TypeAlias = ModelSource | Checkpoint | Adapter


def open_adapter_or_checkpoint(source: Source) -> Adapter | Checkpoint:
    """The adapter or the checkpoint that a SOURCE is; of files only headers are read.

    Raises:
        SourceError, FileFormatError: it cannot be read.
    """
    if isinstance(source, Adapter):
        return source
    if not isinstance(source, (str, Path)):
        is_open = not isinstance(source, Mapping) and hasattr(source, "tensors") and hasattr(source, "tied")
        return source if is_open else open_checkpoint(source)  # type: ignore[return-value, arg-type]  # as just seen
    with named_by_urls():
        return _open(source)


def _open(source: str | Path) -> Adapter | Checkpoint:
    folder = local_path(source)
    if any((folder / part / CONFIG).is_file() for part in ("", *COMPONENTS)) or nested_adapter(folder):
        return load_adapter(source)
    if not pipeline_folders(folder):
        files = locate(source)
        if files.is_gguf and is_adapter_file(files.weights[0]):
            return load_adapter(source)
    opened = open_checkpoint(source)
    if not any(map(is_adapter_key, opened.tensors)):
        return opened
    in_folder = opened.folder and (opened.folder / CONFIG).is_file()
    return load_adapter(opened.folder if in_folder and opened.folder else source)


def is_adapter(source: Source) -> bool:
    """Whether a SOURCE is an adapter; a folder that is not one model, such as a pipeline, is not."""
    try:
        return isinstance(open_adapter_or_checkpoint(source), Adapter)
    except SourceError:
        return False


def open_model(source: Source, *, role: str = "a model", instead: str = "") -> Checkpoint:
    """The checkpoint that a SOURCE is, for operations on models.

    Args:
        source: the SOURCE.
        role: what the operation needs, such as `a fine-tuned model`.
        instead: what to do with an adapter.

    Raises:
        SourceError, FileFormatError: it cannot be read.
        OptionError: it is an adapter.
    """
    opened = open_adapter_or_checkpoint(source)
    if isinstance(opened, Adapter):
        msg = f"{name_of(source)} is an adapter, not {role}" + (f": {instead}" if instead else "")
        raise OptionError(msg)
    return opened


def open_adapter(source: Source) -> Adapter:
    """The adapter that a SOURCE is, for operations on adapters.

    Raises:
        SourceError, FileFormatError: it cannot be read.
        OptionError: it is a model.
    """
    if isinstance(source, Adapter):
        return source
    opened = open_adapter_or_checkpoint(source)
    if isinstance(opened, Adapter):
        return opened
    if isinstance(source, (str, Path)) and not opened.config:
        return load_adapter(source)  # which says what an adapter file looks like
    msg = f"{name_of(source)} is a model, not an adapter: eckart extract makes an adapter from a base and its fine-tune"
    raise OptionError(msg)


def name_of(source: Source) -> str:
    """The name of a SOURCE in messages."""
    if isinstance(source, Adapter):
        return "<adapter>"
    return shown_source(source) if isinstance(source, (str, Path)) else f"<{type(source).__name__}>"
