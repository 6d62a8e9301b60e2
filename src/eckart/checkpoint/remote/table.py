"""The table of what is mounted in this process; light, because every reader of a file asks it."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.checkpoint.remote.recent import Recent
from eckart.errors import EckartError

if TYPE_CHECKING:
    from eckart.checkpoint.remote.file import RemoteFile


@dataclass
class Mounts:
    """What is mounted, as an operating system keeps a table of mounts.

    Attributes:
        cache: the folder where what is read is kept.
        urls: complete URLs by how they are shown.
        folders: where sources are mounted, by their shown URLs.
        files: what paths in these folders stand for.
        recent: what was read last.
        parent: the folder of all of them, removed when the process ends.
    """

    cache: Path | None = None
    urls: dict[str, str] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    files: "dict[Path, RemoteFile]" = field(default_factory=dict)
    parent: Path | None = None
    recent: Recent = field(default_factory=Recent)

    def new_folder(self, name: str) -> Path:
        """An empty folder for one source.

        Args:
            name: its last parts.
        """
        if self.parent is None:
            self.parent = Path(tempfile.mkdtemp(prefix="eckart-remote-", dir=self.cache)).resolve()
            atexit.register(_remove, self.parent, os.getpid())
        folder = Path(tempfile.mkdtemp(dir=self.parent)) / name
        folder.mkdir(parents=True)
        return folder

    def shown(self, text: str) -> str:
        """A text with URLs in place of the folders where they are mounted."""
        for url, folder in self.folders.items():
            text = text.replace(str(folder), url)
        return text


MOUNTS = Mounts()


def _remove(folder: Path, process: int) -> None:
    """Remove the folder of mounts, unless this process is a fork of the one that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def remote_file(path: Path) -> "RemoteFile | None":
    """The remote file that a path stands for; None for a file of this machine."""
    return MOUNTS.files.get(path)


def download_companions(folder: Path) -> None:
    """Download the files next to the weights in a mounted folder; nothing for a folder of this machine.

    Raises:
        SourceError: a file is too large for one next to weights, or cannot be read.
    """
    for path, file in MOUNTS.files.items():
        if path.is_relative_to(folder) and not file.is_weights:
            file.download()


def download(paths: Iterable[Path]) -> None:
    """Download the remote ones of these files, for readers that know only files of this machine (errors as above)."""
    for path in paths:
        if remote := remote_file(path):
            remote.download()


@contextmanager
def named_by_urls() -> Iterator[None]:
    """Errors about a mounted folder name its URL."""
    try:
        yield
    except EckartError as error:
        text = MOUNTS.shown(str(error))
        if text == str(error):
            raise
        raise type(error)(text) from None
