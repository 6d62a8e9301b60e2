"""The files next to the weights of a model folder: config, tokenizer and license."""

import shutil
from collections.abc import Collection
from pathlib import Path

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.links import refuse_links
from eckart.checkpoint.manifest import MANIFEST
from eckart.checkpoint.remote.table import download_companions
from eckart.errors import SourceError
from eckart.result import Skipped

_COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*")
_NOT_COMPANIONS = ("*.index.json", "adapter_config.json", MANIFEST)
_TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    "chat_template*",
)


def has_companions(base: Checkpoint) -> bool:
    """Whether the weights are in a model folder: files next to a lone weight file may have nothing to do with it."""
    return base.folder is not None and (base.folder / "config.json").is_file()


def missing_companions(base: Checkpoint) -> list[Skipped]:
    """Parts of a complete model folder that the base lacks.

    Raises:
        FileFormatError: a part that the base has leads out of its folder.
    """
    if base.folder is not None and has_companions(base):
        companions(base.folder)
        return []
    if any(info.file.suffix == ".gguf" for info in base.tensors.values()):
        file = next(iter(base.tensors.values())).file
        load = f"AutoTokenizer.from_pretrained({str(file.parent)!r}, gguf_file={file.name!r})"
        return [Skipped("tokenizer", f"it is in the GGUF file; {load}.save_pretrained(OUT) adds it")]
    missing = [] if base.config else [Skipped("config.json", "the base has none")]
    return [*missing, Skipped("tokenizer", "the base has none")]


def copy_companions(source: Path, folder: Path, *, omitted: Collection[str] = ()) -> None:
    """Copy the config and tokenizer files of a model folder, except those of the `omitted` names.

    Raises:
        FileFormatError: a file leads out of the folder.
        SourceError: a file was removed meanwhile.
    """
    for file in companions(source):
        if file.name in omitted:
            continue
        try:
            shutil.copyfile(file, folder / file.name)
        except FileNotFoundError:
            msg = f"{file} was removed while {source} was read; run the same command again when it is back"
            raise SourceError(msg) from None


def companions(folder: Path) -> list[Path]:
    """The config and tokenizer files of a model folder.

    Raises:
        FileFormatError: a file leads out of the folder.
    """
    download_companions(folder)
    files = {file for pattern in _COMPANIONS for file in folder.glob(pattern) if file.is_file()}
    chosen = sorted(file for file in files if not any(file.match(pattern) for pattern in _NOT_COMPANIONS))
    refuse_links(chosen, folder)
    return chosen


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a tokenizer in a folder.

    Raises:
        FileFormatError: a file leads out of the folder.
    """
    download_companions(folder)
    files = sorted({file for pattern in _TOKENIZER for file in folder.glob(pattern) if file.is_file()})
    refuse_links(files, folder)
    return files
