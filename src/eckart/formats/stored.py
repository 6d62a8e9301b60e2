"""Common to the adapter formats: outlines of tensors in files, reading with the values checked, refusals."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.adapter.outline import AdapterOutline, LayerKind, TensorOutline
from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.header import read_header
from eckart.checkpoint.manifest import TEXTS
from eckart.checkpoint.output import Kind
from eckart.errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor


def outline(stored: Checkpoint, name: str) -> TensorOutline:
    """Shape and data type of a tensor of the file."""
    info = stored.tensors[name]
    return TensorOutline(info.shape, info.dtype)


def read_finite(stored: Checkpoint, name: str) -> "Tensor":
    """A tensor of the file.

    Raises:
        NotFiniteError: it contains NaN or Inf.
    """
    from eckart.linalg.finite import require_finite

    tensor = stored.read(name)
    require_finite(tensor, f"{stored.source}: {name}")
    return tensor


def read_alpha(stored: Checkpoint, name: str) -> float:
    """The one number of an `.alpha` tensor.

    Raises:
        ValueError: it is not one finite number.
    """
    shape = stored.tensors[name].shape
    if math.prod(shape) != 1:
        msg = f"alpha is one number, its tensor has the shape {shape}"
        raise ValueError(msg)
    (alpha,) = stored.tensors[name].dtype.unpack(stored.read_bytes(name))
    if not math.isfinite(alpha):
        msg = f"alpha is {alpha}"
        raise ValueError(msg)
    return alpha


def header_texts(file: Path) -> dict[str, str]:
    """The metadata texts of a safetensors file, without the framework's name and eckart's mark."""
    header, _ = read_header(file)
    texts = dict(header.metadata) if header else {}
    return {name: text for name, text in texts.items() if name not in ("format", *TEXTS)}


def file_kind(path: Path, suffix: str, what: str) -> Kind:
    """The kind of an output that is one file with this suffix.

    Raises:
        OutputError: the path has another, under which readers would not find it; the message suggests a name.
    """
    if path.suffix != suffix:
        msg = f"{path}: {what} is one file; name it {path.name}{suffix}"
        raise OutputError(msg)
    return "file"


def folder_kind(path: Path, adapter: str) -> Kind:
    """The kind of an output that is a folder; OutputError for the name of a file."""
    if path.suffix in (".safetensors", ".gguf", ".bin"):
        msg = (
            f"{path}: {adapter} is a folder, not a file; use {path.with_suffix('')}, or convert the adapter to a "
            "format of one file"
        )
        raise OutputError(msg)
    return "folder"


def factor_fault(A: TensorOutline, B: TensorOutline) -> str | None:
    """Why two tensors are not the factors of one update, or None if they are."""
    if A.ndim < 2 or A.ndim != B.ndim or A.shape[0] != B.shape[1] or 0 in A.shape or 0 in B.shape:
        return f"the factors {A.shape} and {B.shape} are not a product of one rank"
    if any(size != 1 for size in B.shape[2:]):
        return f"the second factor of a convolution must end in ones, got {B.shape}"
    return None


def beyond_updates(adapter: AdapterOutline) -> list[str]:
    """The parts of an adapter that only LoRA files of image and video models have, each with the reason."""
    added = "a difference that is added to the model's tensor, which only ComfyUI's and kohya's files have"
    carried = "an embedding of a trigger word, which only ComfyUI's and kohya's files have"
    by_input = "DoRA with a norm for each input, which only LyCORIS and ComfyUI know: merge it, or convert it to lora"
    norms = [name for name, layer in adapter.items() if layer.magnitude is not None and layer.magnitude.ndim > 1]
    return [
        *(f"{name}: {by_input}" for name in norms),
        *(f"{name}: {added}" for name in adapter.added),
        *(f"{name}: {carried}" for name in adapter.carried),
    ]


def refused_kinds(adapter: AdapterOutline, reasons: Mapping[LayerKind, str]) -> list[str]:
    """The parts of an adapter that a format for updates alone cannot store: layers by their kind, and full tensors."""
    saved = "a tensor saved in full (modules_to_save), and the format stores only updates"
    faults = [f"{name}: {reasons[layer.kind]}" for name, layer in adapter.items() if layer.kind in reasons]
    return faults + [f"{name}: {saved}" for name in adapter.modules_to_save]
