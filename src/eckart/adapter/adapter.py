"""An adapter as a value: low-rank updates by module name, with what their files say of them."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from eckart.adapter.deferred import Deferred
from eckart.errors import OutputError
from eckart.linalg import LowRank

LayerKind = Literal["linear", "conv1d", "embedding", "conv", "expert"]
AdapterFormat = Literal["peft", "kohya", "diffusers"]


@dataclass(frozen=True, eq=False)
class AdapterLayer:
    """The update of one module: ΔW = scaling · lora_B · lora_A, laid out as the module's kind wants it.

    Attributes:
        lora_A: shape `(rank, in_features)`; of a convolution `(rank, in, k, k)`; of an embedding `(rank, vocabulary)`.
        lora_B: shape `(out_features, rank)`; of a convolution `(out, rank, 1, 1)`; of an embedding `(dimension, rank)`.
        alpha: numerator of the scale.
        rslora: the scale is alpha / √rank rather than alpha / rank.
        kind: `conv1d` is GPT-2's Conv1D, whose weight lies as (in, out): `fan_in_fan_out` in PEFT; `expert` is one
            expert of a fused tensor, named `experts.gate_up_proj[3]`.
        bias: shape `(out_features,)`, scaled like the product (PEFT's `lora_bias`).
        magnitude: DoRA's norm of each output, shape `(out_features,)`.
    """

    lora_A: Tensor
    lora_B: Tensor
    alpha: float
    rslora: bool = False
    kind: LayerKind = "linear"
    bias: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of lora_A."""
        return self.lora_A.shape[0]

    @property
    def scaling(self) -> float:
        """What the product is multiplied with."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def low_rank(self) -> LowRank:
        """The update as a product of matrices, scale included, in float64.

        Returns:
            `LowRank` of shape `(out_features, in_features)`; of a convolution `(out, in·k·k)`; of an embedding
            `(vocabulary, dimension)`, as its weight lies.
        """
        return self._product(torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by the names of their fields."""
        parts = {"lora_A": self.lora_A, "lora_B": self.lora_B, "bias": self.bias, "magnitude": self.magnitude}
        return {part: tensor for part, tensor in parts.items() if tensor is not None}

    def with_update(self, update: LowRank, *, dtype: torch.dtype | None = None) -> "AdapterLayer":
        """The same module with another update, given as `low_rank` gives it: scaling, bias and magnitude stay.

        Args:
            update: in the orientation of `low_rank`; its balance between the factors is kept.
            dtype: of the factors; None is that of the present ones.
        """
        rank, scale = update.rank, self.scaling
        product = update * (1 / scale)
        left, right = product.lora_B.to(dtype or self.lora_B.dtype), product.lora_A.to(dtype or self.lora_A.dtype)
        if self.kind == "embedding":
            left, right = right.T, left.T
        elif self.kind == "conv":
            left = left.reshape(*left.shape, *(1 for _ in self.lora_A.shape[2:]))
            right = right.reshape(rank, *self.lora_A.shape[1:])
        alpha = scale * (rank**0.5 if self.rslora else rank)
        return replace(self, lora_A=right.contiguous(), lora_B=left.contiguous(), alpha=alpha)

    def delta(self) -> Tensor:
        """The dense update in the orientation of the module's own weight, float32 or wider."""
        dense = self._product(torch.promote_types(self.lora_A.dtype, torch.float32)).dense()
        if self.kind == "conv":
            return dense.reshape(dense.shape[0], *self.lora_A.shape[1:])
        return dense.T if self.kind == "conv1d" else dense

    def _product(self, dtype: torch.dtype) -> LowRank:
        A, B = self.lora_A.to(dtype).flatten(1), self.lora_B.to(dtype).flatten(1)
        product = LowRank(A.T, B.T) if self.kind == "embedding" else LowRank(B, A)
        return product * self.scaling


@dataclass(frozen=True, eq=False)
class Adapter(Mapping[str, AdapterLayer]):
    """Updates by module name, and the tensors that an adapter replaces whole.

    Attributes:
        layers: update of each module, in the order of the model; of an adapter on disk read when it is looked up.
        modules_to_save: whole tensors by their name in the model, such as a norm's weight; likewise.
        base_model: name or path of the model that the adapter belongs to.
        task_type: PEFT's task type, such as CAUSAL_LM.
        config: further fields of the file that the adapter came from, kept as they were.
        format: of the files that it came from, and that `save` writes.
        files: what it is read from; empty in memory.
    """

    layers: Mapping[str, AdapterLayer]
    modules_to_save: Mapping[str, Tensor] = field(default_factory=dict)
    base_model: str | None = None
    task_type: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    format: AdapterFormat = "peft"
    files: tuple[Path, ...] = ()

    def __getitem__(self, module: str) -> AdapterLayer:
        return self.layers[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def outline(self) -> "Adapter":
        """The same adapter with every tensor on the meta device: shapes and dtypes, for which nothing is read."""
        layers = self.layers.outlines if isinstance(self.layers, Deferred) else _without_data(self.layers)
        whole = self.modules_to_save
        saved = whole.outlines if isinstance(whole, Deferred) else {name: t.to("meta") for name, t in whole.items()}
        return replace(self, layers=layers, modules_to_save=saved)

    @property
    def params(self) -> int:
        """Numbers in the factors, biases and magnitudes, and in the tensors saved whole."""
        return sum(tensor.numel() for tensor in self.outline().tensors())

    @property
    def nbytes(self) -> int:
        """Bytes of the same."""
        return sum(tensor.nbytes for tensor in self.outline().tensors())

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor, one layer after another."""
        for layer in self.values():
            yield from layer.tensors().values()
        yield from self.modules_to_save.values()

    def fingerprint(self) -> str:
        """A hex digest that changes when any number of the adapter does; of files, when any of them does."""
        digest = hashlib.sha256()
        for file in self.files:
            status = file.stat()
            digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        if not self.files:
            for name, layer in self.items():
                digest.update(f"{name}\0{layer.scaling}\0{layer.kind}\0".encode())
            for tensor in self.tensors():
                digest.update(f"{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the adapter in its format, whole or not at all; one layer at a time is in memory.

        Raises:
            OutputError: `path` exists and `force` is not given, or cannot be written.
            MismatchError: the format cannot express the adapter; the message says why.
        """
        write = _WRITERS.get(self.format)
        if write is None:
            msg = f"adapters are saved by eckart.formats: import it, or eckart, to save one in the {self.format} format"
            raise OutputError(msg)
        write(self, Path(path), force=force)


class Writer(Protocol):
    """Writes an adapter in one format, whole or not at all."""

    def __call__(self, adapter: Adapter, path: Path, *, force: bool) -> None:
        """Errors as `Adapter.save`."""
        ...


_WRITERS: dict[AdapterFormat, Writer] = {}


def register_writer(format: AdapterFormat, writer: Writer) -> None:  # noqa: A002
    """Make `Adapter.save` write a format with `writer`; the value knows no files, so `eckart.formats` calls this."""
    _WRITERS[format] = writer


def _without_data(layers: Mapping[str, AdapterLayer]) -> dict[str, AdapterLayer]:
    return {
        name: replace(layer, **{part: tensor.to("meta") for part, tensor in layer.tensors().items()})
        for name, layer in layers.items()
    }
