"""Files of a folder must be inside it: what an untrusted folder links to elsewhere is neither read nor copied."""

from collections.abc import Iterable
from pathlib import Path

from eckart.errors import FileFormatError

_CACHED = ("models--", "datasets--")


def link_fault(file: Path, folder: Path) -> str | None:
    """Why a file of a folder is not read: it leads out of the folder; None if it stays inside.

    The links of the hub cache, which lead from a snapshot into the blobs folder next to it, stay inside.
    """
    target = file.resolve()
    if target.is_relative_to(_root(folder)):
        return None
    name = file.relative_to(folder) if file.is_relative_to(folder) else file
    return f"{name} is a link to {target}, outside the folder; give the real folder, or replace the link by the file"


def refuse_links(files: Iterable[Path], folder: Path) -> None:
    """Refuse files of a folder that lead out of it.

    Raises:
        FileFormatError: with all of them.
    """
    faults = [fault for file in files if (fault := link_fault(file, folder))]
    if faults:
        msg = f"{folder}: files that cannot be used"
        raise FileFormatError.listing(msg, faults)


def _root(folder: Path) -> Path:
    root = folder.resolve()
    for each in (root, *root.parents):
        if each.parent.name == "snapshots" and each.parent.parent.name.startswith(_CACHED):
            return each.parent.parent
    return root
