"""The outline of an adapter: ranks, shapes, kinds and sizes of its layers, without values and without torch."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from eckart.checkpoint.dtypes import DType
from eckart.checkpoint.naming import nearest_modules

if TYPE_CHECKING:
    from torch import Tensor

LayerKind = Literal["linear", "conv1d", "embedding", "conv", "expert"]
AdapterFormat = Literal["peft", "kohya", "comfyui", "diffusers", "mlx", "gguf"]


@dataclass(frozen=True)
class TensorOutline:
    """Shape and data type of a tensor."""

    shape: tuple[int, ...]
    dtype: DType

    @classmethod
    def of(cls, tensor: "Tensor") -> "TensorOutline":
        """The outline of a tensor in memory."""
        return cls(tuple(tensor.shape), DType.of(tensor.dtype))

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.numel() * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def numel(self) -> int:
        """Number of values."""
        return prod(self.shape)

    def reshape(self, *shape: int) -> "TensorOutline":
        """The same values in another shape, which has no -1."""
        if prod(shape) != self.numel():
            msg = f"shape {shape} does not have the {self.numel()} values of {self.shape}"
            raise ValueError(msg)
        return TensorOutline(shape, self.dtype)

    def flatten(self, start: int = 0) -> "TensorOutline":
        """The same values with the dimensions from `start` on as one."""
        return TensorOutline((*self.shape[:start], prod(self.shape[start:])), self.dtype)

    def on_meta(self) -> "Tensor":
        """A tensor without values, on torch's meta device."""
        import torch

        return torch.empty(self.shape, dtype=self.dtype.torch, device="meta")


T = TypeVar("T", "Tensor", TensorOutline)


@dataclass(frozen=True, eq=False)
class Layer(Generic[T]):
    """The update of one module, in tensors or their outlines: ΔW = scaling · lora_B · lora_A.

    Attributes:
        lora_A: shape `(rank, in_features)`; convolution `(rank, in, k, k)`, embedding `(rank, vocabulary)`.
        lora_B: shape `(out_features, rank)`; convolution `(out, rank, 1, 1)`, embedding `(dimension, rank)`.
        alpha: numerator of the scale.
        rslora: the scale is alpha / √rank rather than alpha / rank.
        kind: `conv1d` is GPT-2's Conv1D, whose weight is stored as (in, out): `fan_in_fan_out` in PEFT; `expert` is one
            expert of a fused tensor, named `experts.gate_up_proj[3]`, or another parameter, such as `gate.weight`.
        bias: shape `(out_features,)`, scaled like the product (PEFT's `lora_bias`).
        magnitude: DoRA's norm of each output, shape `(out_features,)`, or, as LyCORIS may train it, of each input,
            shape `(1, in_features)`.
    """

    lora_A: T
    lora_B: T
    alpha: float
    rslora: bool = False
    kind: LayerKind = "linear"
    bias: T | None = None
    magnitude: T | None = None

    @property
    def rank(self) -> int:
        """Rows of lora_A."""
        return self.lora_A.shape[0]

    @property
    def scaling(self) -> float:
        """Factor of the product."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def update_shape(self) -> tuple[int, int]:
        """Shape of `low_rank()`: `(out, in)`; `(out, in·k·k)` for a convolution, and as the weight for an embedding."""
        outputs, inputs = self.lora_B.shape[0], prod(self.lora_A.shape[1:])
        return (inputs, outputs) if self.kind == "embedding" else (outputs, inputs)

    @property
    def params(self) -> int:
        """Number of values in all tensors of the layer."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the layer."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, T]:
        """The tensors that the layer has, by the names of their fields."""
        parts = {"lora_A": self.lora_A, "lora_B": self.lora_B, "bias": self.bias, "magnitude": self.magnitude}
        return {part: tensor for part, tensor in parts.items() if tensor is not None}


@dataclass(frozen=True)
class LayerOutline(Layer[TensorOutline]):
    """A layer without values: see `Layer` for the attributes."""


L = TypeVar("L", bound=Layer[Any])


@dataclass(frozen=True, eq=False)
class AdapterBase(Mapping[str, L], Generic[L, T]):
    """Layers by module name, with what their files say of them: in tensors or their outlines.

    Attributes:
        layers: update of each module, in the order of the model.
        modules_to_save: tensors that the adapter replaces, by their name in the model, such as a norm's weight.
        base_model: name or path of the model that the adapter belongs to.
        task_type: PEFT's task type, such as CAUSAL_LM.
        config: further fields of the file that the adapter was read from, unchanged.
        format: format of the files that it was read from, and that `save` writes.
        files: files that it is read from; empty in memory.
        added: tensors that the adapter adds to those of the model, by their name there, such as a norm's weight.
        carried: tensors that belong to no part of the model, such as the embedding of a trigger word.
        keep_scales: whether a PEFT file states each layer's alpha and `use_rslora`, which some readers ignore, rather
            than one alpha for all layers with the rest of each scale in lora_B.
    """

    layers: Mapping[str, L]
    modules_to_save: Mapping[str, T] = field(default_factory=dict)
    base_model: str | None = None
    task_type: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    format: AdapterFormat = "peft"
    files: tuple[Path, ...] = ()
    added: Mapping[str, T] = field(default_factory=dict)
    carried: Mapping[str, T] = field(default_factory=dict)
    keep_scales: bool = False

    def __getitem__(self, module: str) -> L:
        try:
            return self.layers[module]
        except KeyError:
            raise KeyError(self._missing(module)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, module: object) -> bool:
        return module in self.layers

    def tensors(self) -> Iterator[T]:
        """Every tensor, one layer after another."""
        for layer in self.values():
            yield from layer.tensors().values()
        for others in (self.modules_to_save, self.added, self.carried):
            yield from others.values()

    def _missing(self, module: str) -> str:
        near = nearest_modules(module, self.layers)
        return f"the adapter has no layer {module!r}" + (f"; nearest: {', '.join(near)}" if near else "")


@dataclass(frozen=True, eq=False)
class AdapterOutline(AdapterBase[LayerOutline, TensorOutline]):
    """An adapter without values: see `AdapterBase` for the attributes."""

    @property
    def params(self) -> int:
        """Number of values in the factors, biases and magnitudes, and in `modules_to_save`."""
        return sum(tensor.numel() for tensor in self.tensors())

    @property
    def nbytes(self) -> int:
        """Bytes of the same."""
        return sum(tensor.nbytes for tensor in self.tensors())
