"""A state dict or a live module as a checkpoint."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from eckart.checkpoint.checkpoint import TensorInfo, check_rows
from eckart.checkpoint.dtypes import DType
from eckart.errors import SourceError

_IN_MEMORY = Path("<memory>")
_KINDS = {nn.Linear: "linear", nn.Embedding: "embedding", nn.modules.conv._ConvNd: "conv"}


class MemoryCheckpoint:
    """Tensors already in memory; names that share storage are tied. See `Checkpoint` for the attributes."""

    def __init__(self, source: Mapping[str, Tensor] | nn.Module) -> None:
        module = source if isinstance(source, nn.Module) else None
        if not isinstance(source, (Mapping, nn.Module)):
            msg = f"expected a state dict or a module, got {type(source).__name__}"
            raise SourceError(msg)
        state: dict[str, Any] = dict(source.state_dict() if isinstance(source, nn.Module) else source)
        state = {n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in state.items()}
        wrong = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
        if wrong is not None:
            msg = f"a state dict maps names to tensors; {wrong!r} is of type {type(state[wrong]).__name__}"
            raise SourceError(msg)
        self.source = "<state dict>" if module is None else f"<{type(module).__name__}>"
        self.folder: Path | None = None
        self.files: tuple[Path, ...] = ()
        self.config: dict[str, Any] = _config(module)
        self.kinds: Mapping[str, str] = _kinds(module)
        self.metadata: Mapping[str, Mapping[str, str]] = {}
        tied: dict[str, str] = {}
        self.tied: Mapping[str, str] = tied
        self._state: dict[str, Tensor] = {}
        first: dict[tuple[Any, ...], str] = {}
        for name, value in state.items():
            stored = value.numel() > 0 and not value.is_meta
            owner = first.setdefault(_storage(value), name) if stored else name
            if owner != name:
                tied[name] = owner
            else:
                self._state[name] = value.detach()
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, tuple(value.shape), DType.of(value.dtype), value.nbytes, _IN_MEMORY)
            for name, value in self._state.items()
        }

    def read(self, name: str) -> Tensor:
        """The tensor itself, not a copy."""
        return self._state[name]

    def read_bytes(self, name: str) -> bytes:
        """The bytes of a tensor."""
        return _bytes(self._state[name]).tobytes()

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """A view of entries `start` to `stop` of the first dimension."""
        check_rows(self.tensors[name], start, stop)
        return self._state[name][start:stop]

    def fingerprint(self) -> str:
        """Digest of every tensor's name, dtype, shape and bytes."""
        digest = hashlib.sha256()
        for name, value in self._state.items():
            digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            digest.update(_bytes(value))
        return digest.hexdigest()


def _bytes(value: Tensor) -> memoryview:
    return value.cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _storage(value: Tensor) -> tuple[Any, ...]:
    """A key that two names of one tensor share; views of different parts of a storage differ."""
    has_data = not isinstance(value, FakeTensor)  # as in a simulation
    address = value.data_ptr() if has_data else (value.untyped_storage()._cdata, value.storage_offset())
    return value.device, address, value.shape, value.stride(), value.dtype


def _config(module: nn.Module | None) -> dict[str, Any]:
    """The config of a transformers model, by its `to_dict`; {} for any other module."""
    to_dict = getattr(getattr(module, "config", None), "to_dict", None)
    config = to_dict() if callable(to_dict) else None
    return config if isinstance(config, dict) else {}


def _kinds(module: nn.Module | None) -> dict[str, str]:
    if module is None:
        return {}
    kinds = {}
    for name, child in module.named_modules():
        kind = next((kind for cls, kind in _KINDS.items() if isinstance(child, cls)), None)
        # transformers' Conv1D is known by its name: importing transformers to ask would take seconds.
        if type(child).__name__ == "Conv1D":
            kind = "conv1d"
        if kind == "conv" and getattr(child, "groups", 1) > 1:
            kind = "grouped conv"
        if kind:
            kinds[name] = kind
    return kinds
