"""What eckart wrote: a folder lists its files, a file carries a format tag; only these may be replaced."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from eckart.engine.working_folder import write_whole
from eckart.version import __version__

FORMAT = "eckart-output/1"
MANIFEST = ".eckart.json"
CARD = "README.md"  # the model card
TEXTS = {"written_by": FORMAT}  # of a safetensors file that is an output by itself
_PARTIAL = f"{MANIFEST}.tmp"
_TAG = re.compile(rb"eckart-[a-z-]+/[0-9]")
_SEARCHED_BYTES = 4096  # at both ends of a file


def write_manifest(folder: Path, names: Iterable[str] | None = None) -> None:
    """List the files of a folder in `.eckart.json`, completely or not at all.

    Args:
        folder: the folder.
        names: files that will be written to it; by default those that it contains.
    """
    files = sorted(set(_files(folder) if names is None else names) - {MANIFEST, _PARTIAL})
    content = {"format": FORMAT, "eckart": __version__, "files": files}
    write_whole(folder / MANIFEST, json.dumps(content, indent=1, ensure_ascii=True) + "\n")


def listed_files(folder: Path) -> set[str]:
    """The files that a folder's manifest lists; none without one."""
    return _listed(folder) or set()


def has_manifest(folder: Path) -> bool:
    """Whether eckart wrote a folder."""
    return _listed(folder) is not None


def foreign_files(folder: Path) -> list[str]:
    """Names of the files in a folder that its manifest does not list: all files if there is none."""
    listed = listed_files(folder) | {MANIFEST, _PARTIAL}
    return [name for name in _files(folder) if name not in listed]


def sealed_card(text: str) -> str:
    """A model card with a mark at its end by which `is_edited_card` sees whether it was changed."""
    return f"{text}\n<!-- eckart-card/1 {hashlib.sha256(text.encode()).hexdigest()[:16]} -->\n"


def unsealed_card(text: str) -> str | None:
    """The card without its mark; None if the mark is missing or of another text."""
    card, _, _ = text.rpartition("\n<!-- eckart-card/1 ")
    return card if sealed_card(card) == text else None


def is_edited_card(folder: Path) -> bool:
    """Whether the model card in a folder is no longer the one that eckart wrote: its user stated a license, perhaps."""
    card = folder / CARD
    try:
        return card.is_file() and unsealed_card(card.read_text(encoding="utf-8")) is None
    except (OSError, UnicodeDecodeError):
        return True


def is_written_by_eckart(file: Path) -> bool:
    """Whether a file carries the tag of one of eckart's formats, such as `eckart-output/1`, at its beginning or end."""
    with file.open("rb") as opened:
        head = opened.read(_SEARCHED_BYTES)
        opened.seek(max(0, file.stat().st_size - _SEARCHED_BYTES))
        return bool(_TAG.search(head) or _TAG.search(opened.read(_SEARCHED_BYTES)))


def _files(folder: Path) -> list[str]:
    """Every file, link and empty subfolder, by its path in the folder."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    )


def _listed(folder: Path) -> set[str] | None:
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="ascii"))
        return {*map(str, content["files"])} if content["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
