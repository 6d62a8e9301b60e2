"""A module with adapters: the base class of all kinds."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor, nn

from eckart.adapter import AdapterLayer
from eckart.adapter.outline import LayerKind
from eckart.errors import MismatchError
from eckart.nn.dropout import Dropout, draw
from eckart.nn.factors import LoRAFactors
from eckart.nn.row_norm import row_norms, squared_row_norms


class AdaptedModule(nn.Module):
    """Wraps `base_layer` in a model and adds the updates of adapters to its output.

    Attributes:
        base_layer: the original module; its weight does not train.
        adapters: factors by adapter name.
        weights: weights of the adapters that are switched on.
        merged: whether the active adapters are merged into the base weight, so that only the base computes.
        undo: what `unmerge_weights` needs.
    """

    kinds: ClassVar[tuple[LayerKind, ...]]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapters = nn.ModuleDict()
        self.weights: dict[str, float] = {}
        self.merged = False
        self.undo: object | None = None
        self._norms: tuple[Tensor, tuple[object, ...], Tensor] | None = None
        self.train(base_layer.training)

    def add(self, name: str, layer: AdapterLayer, *, dropout: float, trainable: bool) -> None:
        """Add an adapter, switched off; its tensors move to the base's device."""
        device = next(chain(self.base_layer.parameters(), self.base_layer.buffers())).device
        tensors = {part: tensor.to(device) for part, tensor in layer.tensors().items()}
        factors = LoRAFactors(replace(layer, **tensors), dropout=dropout, trainable=trainable)
        self.adapters[name] = factors.train(self.training)

    def layer(self, name: str) -> AdapterLayer:
        """An adapter's update as a value, with copies of its tensors."""
        return self.factors(name).layer()

    def factors(self, name: str) -> LoRAFactors:
        """The trained tensors of an adapter."""
        factors = self.adapters[name]
        assert isinstance(factors, LoRAFactors)
        return factors

    @property
    def weight(self) -> Tensor:
        """The base's weight, for code that looks at dtype or device."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return getattr(self.base_layer, "bias", None)

    def rows(self) -> Tensor:
        """The base weight as the factors see it: `(out, in)`, of an embedding (dimension, vocabulary)."""
        return self.as_rows(self.weight.detach())

    def as_rows(self, weight: Tensor) -> Tensor:
        """A view of a dense weight in the base's layout, in the layout of `rows`."""
        raise NotImplementedError

    def plain(self, x: Tensor) -> Tensor:
        """The base's output without its bias."""
        y = self.base_layer(x)
        return y if self.bias is None else y - self.along_outputs(self.bias).to(y.dtype)

    def must_be_called(self) -> bool:
        """Whether the base has hooks or its own `forward`, so that it must be called."""
        base = self.base_layer
        hooks = (base._forward_hooks, base._forward_pre_hooks, base._backward_hooks, base._backward_pre_hooks)
        return any(hooks) or "forward" in vars(base)

    def update(self, x: Tensor, factors: LoRAFactors) -> Tensor:
        """Scaling · B·A·drop(x)."""
        raise NotImplementedError

    def along_outputs(self, values: Tensor) -> Tensor:
        """Values of shape `(out_features,)` in a shape that multiplies outputs."""
        return values

    def switch(self, weights: Mapping[str, float]) -> None:
        """Switch on the adapters with a weight other than zero and all others off; only those that are on can train."""
        self.weights = {name: float(weight) for name, weight in weights.items() if name in self.adapters}
        for name in self.adapters:
            factors = self.factors(name)
            factors.requires_grad_(factors.trainable and bool(self.weights.get(name)))

    def switched_on(self) -> Iterator[tuple[LoRAFactors, float]]:
        """The adapters with a weight other than zero, and their weights."""
        return ((self.factors(name), weight) for name, weight in self.weights.items() if weight)

    def forward(self, x: Tensor) -> Tensor:
        """The base's output and the weighted updates: w·(W′ − W)·x of each adapter W′."""
        adapters = [] if self.merged else list(self.switched_on())
        if not adapters:
            return self.base_layer(x)
        plain = self.plain(x)
        y = plain
        for factors, weight in adapters:
            change = self.update(x, factors)
            if factors.magnitude is not None:
                scale = self.along_outputs(self.magnitude_scale(factors)).to(plain.dtype)
                change = (scale - 1) * plain + scale * change
            if factors.lora_bias is not None:
                change = change + self.along_outputs(factors.lora_bias * factors.scaling).to(plain.dtype)
            y = y + (change if weight == 1 else weight * change)
        return y if self.bias is None else y + self.along_outputs(self.bias).to(y.dtype)

    def dropout_of(self, x: Tensor, factors: LoRAFactors) -> Dropout | None:
        """The dropout of an adapter's input in this pass."""
        return draw(x, factors.dropout) if factors.dropout and self.training else None

    def magnitude_scale(self, factors: LoRAFactors) -> Tensor:
        """DoRA's scale of each output, shape `(out_features,)`: magnitude over the norm of the row with its update."""
        assert factors.magnitude is not None
        A, B = factors.stacked()
        norms = row_norms(self.rows(), self.squared_norms(), A.flatten(1), B.flatten(1), factors.scaling)
        return factors.magnitude / norms

    def squared_norms(self) -> Tensor:
        """‖w‖² of the base's rows, computed again when the weight has changed."""
        weight = self.weight
        state = (weight.dtype, weight.device, 0 if weight.is_inference() else weight._version)
        if self._norms is None or self._norms[0] is not weight or self._norms[1] != state:
            self._norms = (weight, state, squared_row_norms(self.rows()))
        return self._norms[2]

    @classmethod
    def kind_of(cls, module: nn.Module) -> LayerKind | None:
        """The kind of a module; None if this class does not adapt it."""
        raise NotImplementedError

    @classmethod
    def fault_of(cls, module: nn.Module) -> str | None:
        """Why a module of a suitable kind still cannot be adapted."""
        return None

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        weights: Mapping[str, float] = self.weights
        return "merged" if self.merged else ", ".join(f"{name}={weight:g}" for name, weight in weights.items())


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer computes: that of x, or autocast's."""
    return torch.get_autocast_dtype(x.device.type) if is_autocast(x) and x.dtype.itemsize < 8 else x.dtype


def is_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of x; the meta device has none."""
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def merged_already(path: str) -> MismatchError:
    """The error for an operation that is impossible while adapters are merged."""
    return MismatchError(f"{path}: adapters are merged into the base; call unmerge_weights first")
