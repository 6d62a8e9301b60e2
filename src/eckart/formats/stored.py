"""What the adapter formats share: outlines of a file's tensors, reading them with their values checked, refusals."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter, LayerKind
from eckart.checkpoint import Checkpoint
from eckart.checkpoint.header import read_header
from eckart.linalg.finite import require_finite


def outline(stored: Checkpoint, name: str) -> Tensor:
    """A tensor of the file on the meta device, as the header tells it."""
    info = stored.tensors[name]
    return torch.empty(info.shape, dtype=info.dtype.torch, device="meta")


def read_finite(stored: Checkpoint, name: str) -> Tensor:
    """A tensor of the file.

    Raises:
        NotFiniteError: it holds NaN or Inf.
    """
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
    alpha = float(stored.read(name))
    if not math.isfinite(alpha):
        msg = f"alpha is {alpha}"
        raise ValueError(msg)
    return alpha


def header_texts(file: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors, without the mark of the framework."""
    header, _ = read_header(file)
    texts = dict(header.metadata) if header else {}
    texts.pop("format", None)
    return texts


def factor_fault(A: Tensor, B: Tensor) -> str | None:
    """Why two tensors are no factors of one update, or None if they are."""
    if A.ndim < 2 or A.ndim != B.ndim or A.shape[0] != B.shape[1] or 0 in A.shape or 0 in B.shape:
        return f"the factors are {tuple(A.shape)} and {tuple(B.shape)}: no product of one rank"
    if any(size != 1 for size in B.shape[2:]):
        return f"the second factor of a convolution ends in ones, got {tuple(B.shape)}"
    return None


def refused_kinds(adapter: Adapter, reasons: Mapping[LayerKind, str]) -> list[str]:
    """What of an adapter a format of updates alone has no place for: layers by their kind, and tensors saved whole."""
    whole = "a tensor saved whole, and the format holds only updates (modules_to_save)"
    faults = [f"{name}: {reasons[layer.kind]}" for name, layer in adapter.items() if layer.kind in reasons]
    return faults + [f"{name}: {whole}" for name in adapter.modules_to_save]
