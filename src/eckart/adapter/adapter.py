"""An adapter as a value: low-rank updates by module name, in memory or read from files on lookup."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import AdapterBase, AdapterFormat, AdapterOutline, Layer, LayerOutline, TensorOutline
from eckart.checkpoint.inputs import files_digest
from eckart.errors import OutputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eckart.linalg import LowRank


@dataclass(frozen=True, eq=False)
class AdapterLayer(Layer["Tensor"]):
    """The update of one module: see `Layer` for the attributes."""

    def low_rank(self) -> "LowRank":
        """The update as a product of matrices, scale included, in float64.

        Returns:
            `LowRank` of shape `update_shape`.
        """
        return self.unscaled() * self.scaling

    def unscaled(self) -> "LowRank":
        """The product of the factors without the scale, in float64, of shape `update_shape`."""
        import torch

        return self._product(torch.float64)

    def outline(self) -> LayerOutline:
        """The layer without its values."""
        parts: dict[str, Any] = {part: TensorOutline.of(tensor) for part, tensor in self.tensors().items()}
        return LayerOutline(alpha=self.alpha, rslora=self.rslora, kind=self.kind, **parts)

    def with_update(self, update: "LowRank", *, dtype: "torch.dtype | None" = None) -> "AdapterLayer":
        """The same module with another update, given as `low_rank` gives it: scaling, bias and magnitude stay.

        Args:
            update: in the orientation of `low_rank`; its balance between the factors is kept.
            dtype: data type of the factors; None for that of the present ones.
        """
        return self.with_product(update * (1 / self.scaling), dtype=dtype)

    def with_product(self, product: "LowRank", *, dtype: "torch.dtype | None" = None) -> "AdapterLayer":
        """The same module with other factors, given as `unscaled` gives them: scaling, bias and magnitude stay.

        Arguments as of `with_update`.
        """
        rank, scale = product.rank, self.scaling
        left, right = product.lora_B.to(dtype or self.lora_B.dtype), product.lora_A.to(dtype or self.lora_A.dtype)
        if self.kind == "embedding":
            left, right = right.T, left.T
        elif self.kind == "conv":
            left = left.reshape(*left.shape, *(1 for _ in self.lora_A.shape[2:]))
            right = right.reshape(rank, *self.lora_A.shape[1:])
        alpha = scale * (math.sqrt(rank) if self.rslora else rank)
        return replace(self, lora_A=right.contiguous(), lora_B=left.contiguous(), alpha=alpha)

    def delta(self) -> "Tensor":
        """The dense update in the orientation of the module's own weight, float32 or wider."""
        import torch

        dense = (self._product(torch.promote_types(self.lora_A.dtype, torch.float32)) * self.scaling).dense()
        if self.kind == "conv":
            return dense.reshape(dense.shape[0], *self.lora_A.shape[1:])
        return dense.T if self.kind == "conv1d" else dense

    def _product(self, dtype: "torch.dtype") -> "LowRank":
        from eckart.linalg import LowRank

        A, B = self.lora_A.to(dtype).flatten(1), self.lora_B.to(dtype).flatten(1)
        return LowRank(A.T, B.T) if self.kind == "embedding" else LowRank(B, A)


def with_tensors(outline: LayerOutline, tensors: Mapping[str, "Tensor"]) -> AdapterLayer:
    """The layer of an outline, from its tensors by the names of their fields."""
    parts: dict[str, Any] = dict(tensors)
    return AdapterLayer(alpha=outline.alpha, rslora=outline.rslora, kind=outline.kind, **parts)


def on_meta(outline: AdapterOutline) -> "Adapter":
    """An adapter of the same outline whose tensors are on torch's meta device."""
    parts = {
        name: with_tensors(layer, {part: tensor.on_meta() for part, tensor in layer.tensors().items()})
        for name, layer in outline.items()
    }
    saved, added, carried = (
        {name: tensor.on_meta() for name, tensor in tensors.items()}
        for tensors in (outline.modules_to_save, outline.added, outline.carried)
    )
    return Adapter(
        parts,
        saved,
        outline.base_model,
        outline.task_type,
        outline.config,
        outline.format,
        outline.files,
        added,
        carried,
    )


@dataclass(frozen=True, eq=False)
class Adapter(AdapterBase[AdapterLayer, "Tensor"]):
    """Updates by module name, and tensors that an adapter replaces: see `AdapterBase` for the attributes.

    Layers and tensors of an adapter on disk are read when they are looked up. Two adapters are equal if they have the
    same names, kinds and scales, and bit for bit the same tensors; the format and the config do not count.
    """

    def outline(self) -> AdapterOutline:
        """The adapter without its values, for which no tensor is read."""
        layers = self.layers
        return AdapterOutline(
            layers.outlines if isinstance(layers, Deferred) else {n: layer.outline() for n, layer in layers.items()},
            _outlines(self.modules_to_save),
            self.base_model,
            self.task_type,
            self.config,
            self.format,
            self.files,
            _outlines(self.added),
            _outlines(self.carried),
        )

    @property
    def params(self) -> int:
        """Number of values in the factors, biases and magnitudes, and in `modules_to_save`."""
        return self.outline().params

    @property
    def nbytes(self) -> int:
        """Bytes of the same."""
        return self.outline().nbytes

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Adapter):
            return NotImplemented
        return self is other or (_facts(self) == _facts(other) and _same_values(self, other))

    # Equal adapters may differ in their order and files, and hashing values would read every tensor.
    __hash__ = None  # type: ignore[assignment]

    def fingerprint(self) -> str:
        """A hex digest that changes when a value of the adapter changes; for files, when one of them does."""
        import torch

        digest = hashlib.sha256()
        for name, layer in self.outline().items():
            digest.update(f"{name}\0{layer.scaling}\0{layer.kind}\0".encode())
        if self.files:
            return f"{files_digest(self.files)} {digest.hexdigest()}"
        for tensor in self.tensors():
            digest.update(f"{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the adapter in its format, completely or not at all; one layer at a time is in memory.

        Raises:
            OutputError: `path` exists and `force` is not given, or cannot be written.
            MismatchError: the format cannot express the adapter; the message says why.
        """
        write = _WRITERS.get(self.format)
        if write is None:
            msg = f"no writer is registered for the format {self.format!r}; import eckart.formats"
            raise OutputError(msg)
        write(self, Path(path), force=force)


_WRITERS: dict[AdapterFormat, Callable[..., None]] = {}  # called with an adapter, a path, and `force` by name


def register_writer(format: AdapterFormat, writer: Callable[..., None]) -> None:  # noqa: A002
    """Make `Adapter.save` write a format with `writer`; `eckart.formats` calls this, because it imports this module."""
    _WRITERS[format] = writer


def _outlines(tensors: "Mapping[str, Tensor]") -> Mapping[str, TensorOutline]:
    return (
        tensors.outlines
        if isinstance(tensors, Deferred)
        else {name: TensorOutline.of(tensor) for name, tensor in tensors.items()}
    )


def _facts(adapter: Adapter) -> tuple[object, ...]:
    """Everything that equal adapters have in common, except the values."""
    outline = adapter.outline()
    layers = {name: (layer.kind, layer.scaling, layer.tensors()) for name, layer in outline.items()}
    return layers, dict(outline.modules_to_save), dict(outline.added), dict(outline.carried)


def _same_values(first: Adapter, second: Adapter) -> bool:
    """Whether two adapters of the same outline have the same values; one layer at a time is read."""
    import torch

    for name, layer in first.items():
        other = second[name].tensors()
        if not all(torch.equal(tensor, other[part]) for part, tensor in layer.tensors().items()):
            return False
    pairs = (
        (first.modules_to_save, second.modules_to_save),
        (first.added, second.added),
        (first.carried, second.carried),
    )
    return all(torch.equal(tensor, others[name]) for tensors, others in pairs for name, tensor in tensors.items())
