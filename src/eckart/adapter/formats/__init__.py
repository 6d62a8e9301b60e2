"""Adapters as files: which format a file has, and its reader and writer."""

from pathlib import Path

from eckart.adapter.adapter import Adapter
from eckart.adapter.formats import peft


def read(source: str | Path) -> Adapter:
    """The adapter in the files of a SOURCE.

    Raises:
        SourceError: there is no adapter at `source`.
        FileFormatError: config and tensors are damaged or disagree; every fault is listed.
    """
    return peft.read(Path(source))


def write(adapter: Adapter, path: Path, *, force: bool = False) -> None:
    """Write an adapter in its own format, whole or not at all.

    Raises:
        OutputError: `path` exists and `force` is not given, or cannot be written.
        MismatchError: the format cannot express the adapter; the message says why.
    """
    peft.write(adapter, path, force=force)
