"""An adapter as a value: low-rank updates by module name, with what their files say of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from eckart.linalg import LowRank

LayerKind = Literal["linear", "conv1d", "embedding", "conv"]


@dataclass(frozen=True, eq=False)
class AdapterLayer:
    """The update of one module: ΔW = scaling · lora_B · lora_A, laid out as the module's kind wants it.

    Attributes:
        lora_A: shape `(rank, in_features)`; of a convolution `(rank, in, k, k)`; of an embedding `(rank, vocabulary)`.
        lora_B: shape `(out_features, rank)`; of a convolution `(out, rank, 1, 1)`; of an embedding `(dimension, rank)`.
        alpha: numerator of the scale.
        rslora: the scale is alpha / √rank rather than alpha / rank.
        kind: `conv1d` is GPT-2's Conv1D, whose weight lies as (in, out): `fan_in_fan_out` in PEFT.
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
        """The update as a product of matrices, scale included, in float32 or wider.

        Returns:
            `LowRank` of shape `(out_features, in_features)`; of a convolution `(out, in·k·k)`; of an embedding
            `(vocabulary, dimension)`, as its weight lies.
        """
        dtype = torch.promote_types(self.lora_A.dtype, torch.float32)
        A, B = self.lora_A.to(dtype).flatten(1), self.lora_B.to(dtype).flatten(1)
        product = LowRank(A.T, B.T) if self.kind == "embedding" else LowRank(B, A)
        return product * self.scaling

    def delta(self) -> Tensor:
        """The dense update in the orientation of the module's own weight, float32 or wider."""
        dense = self.low_rank().dense()
        if self.kind == "conv":
            return dense.reshape(dense.shape[0], *self.lora_A.shape[1:])
        return dense.T if self.kind == "conv1d" else dense


@dataclass(frozen=True, eq=False)
class Adapter(Mapping[str, AdapterLayer]):
    """Updates by module name, and the tensors that an adapter replaces whole.

    Attributes:
        layers: update of each module, in the order of the model.
        modules_to_save: whole tensors by their name in the model, such as a norm's weight.
        base_model: name or path of the model that the adapter belongs to.
        task_type: PEFT's task type, such as CAUSAL_LM.
        config: further fields of the file that the adapter came from, kept as they were.
    """

    layers: dict[str, AdapterLayer]
    modules_to_save: dict[str, Tensor] = field(default_factory=dict)
    base_model: str | None = None
    task_type: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, module: str) -> AdapterLayer:
        return self.layers[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def params(self) -> int:
        """Numbers in the factors, biases and magnitudes, and in the tensors saved whole."""
        return sum(tensor.numel() for tensor in self._tensors())

    @property
    def nbytes(self) -> int:
        """Bytes of the same."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        for layer in self.values():
            parts = (layer.lora_A, layer.lora_B, layer.bias, layer.magnitude)
            yield from (part for part in parts if part is not None)
        yield from self.modules_to_save.values()

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write a PEFT folder, whole or not at all.

        Raises:
            OutputError: `path` exists and `force` is not given, or cannot be written.
            MismatchError: the layers cannot share one PEFT config; the message says which.
        """
        from eckart.adapter.formats import peft

        peft.write(self, Path(path), force=force)


def load_adapter(path: str | Path) -> Adapter:
    """Read an adapter from its files: a PEFT folder.

    Raises:
        SourceError: there is no adapter at `path`.
        FileFormatError: config and tensors are damaged or disagree; every fault is listed.
    """
    from eckart.adapter.formats import peft

    return peft.read(Path(path))
