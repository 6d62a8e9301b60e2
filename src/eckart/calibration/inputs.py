"""Checks of a calibrated command's inputs that need no model: its texts exist, and its output is none of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.checkpoint import check_output
from eckart.checkpoint.source import local_paths
from eckart.training.records import find_files

if TYPE_CHECKING:
    from eckart.training.records import Source


def check_output_and_texts(output: Path, texts: "Sequence[Source]", file: Path | None, *, force: bool) -> None:
    """Refuse an output that is, or contains, a text or the moments, and texts that do not exist.

    Raises:
        OutputError: the output is one of them, or cannot be written.
        SourceError: there is no such text.
    """
    files = [text for text in texts if isinstance(text, str | Path)]
    check_output(output, force=force, inputs=local_paths(*files, file))
    for text in files:
        find_files(text)
