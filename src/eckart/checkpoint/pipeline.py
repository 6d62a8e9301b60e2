"""A diffusers pipeline as one checkpoint: the models in its folders, whose tensors' names begin with their folder."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.checkpoint import Checkpoint, TensorInfo
from eckart.checkpoint.links import refuse_links
from eckart.checkpoint.remote.table import download_companions

if TYPE_CHECKING:
    from torch import Tensor

COMPONENTS = (
    *("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"),
    *("connectors", "prior"),
)
"""Folders of a pipeline whose models adapters change."""
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_OF_ADAPTER = ("adapter_config.json", "pytorch_lora_weights.safetensors")


class PipelineCheckpoint:
    """The models of a pipeline that adapters change; see `Checkpoint` for the attributes.

    Attributes:
        parts: the model in each folder.
    """

    def __init__(self, source: str, folder: Path, parts: Mapping[str, Checkpoint]) -> None:
        self.source, self.parts = source, parts
        self.folder: Path | None = folder
        self.config: dict[str, Any] = {}
        self.kinds: Mapping[str, str] = {}
        self.files = tuple(file for part in parts.values() for file in part.files)
        self.metadata: Mapping[str, Mapping[str, str]] = {
            f"{name}/{file}": texts for name, part in parts.items() for file, texts in part.metadata.items()
        }
        self.tensors: Mapping[str, TensorInfo] = {
            f"{name}.{tensor}": replace(info, name=f"{name}.{tensor}")
            for name, part in parts.items()
            for tensor, info in part.tensors.items()
        }
        self.tied: Mapping[str, str] = {
            f"{name}.{absent}": f"{name}.{stored}"
            for name, part in parts.items()
            for absent, stored in part.tied.items()
        }

    def read(self, name: str) -> "Tensor":
        """The complete tensor."""
        part, tensor = self._find(name)
        return part.read(tensor)

    def read_bytes(self, name: str) -> bytes:
        """The stored bytes of a tensor."""
        part, tensor = self._find(name)
        return part.read_bytes(tensor)

    def rows(self, name: str, start: int, stop: int) -> "Tensor":
        """Entries `start` to `stop` of the first dimension."""
        part, tensor = self._find(name)
        return part.rows(tensor, start, stop)

    def fingerprint(self) -> str:
        """A digest of those of the models."""
        return " ".join(part.fingerprint() for part in self.parts.values())

    def _find(self, name: str) -> tuple[Checkpoint, str]:
        part, _, tensor = name.partition(".")
        return self.parts[part], tensor


def pipeline_folders(folder: Path) -> dict[str, Path]:
    """The folders of a pipeline's models; {} if the folder is none: it has weights of its own, or no such models."""
    if not folder.is_dir() or _has_weights(folder):
        return {}
    found = {name: folder / name for name in COMPONENTS if (folder / name).is_dir()}
    return {
        name: path
        for name, path in found.items()
        if _has_weights(path) and not any((path / file).exists() for file in _OF_ADAPTER)
    }


def other_files(folder: Path) -> list[Path]:
    """The files of a pipeline beside the weights of the models that adapters change, by their paths in its folder.

    Raises:
        FileFormatError: a file leads out of the folder.
    """
    weights = {file for path in pipeline_folders(folder).values() for each in _WEIGHTS for file in path.glob(each)}
    download_companions(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file not in weights)
    refuse_links(files, folder)
    return [file.relative_to(folder) for file in files if ".cache" not in file.parts]


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in (*_WEIGHTS, "*.gguf"))
