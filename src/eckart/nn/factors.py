"""The trained tensors of an adapter on one module: its factors, and DoRA's magnitude."""

import math

import torch
from torch import Tensor, nn

from eckart.adapter import AdapterLayer
from eckart.adapter.outline import LayerKind


class LoRAFactors(nn.Module):
    """Trainable factors, initialized from an `AdapterLayer`.

    Attributes:
        lora_A: shape `(rank, in_features)`, or as `AdapterLayer` has it for the kind.
        lora_B: shape `(out_features, rank)`, likewise.
        lora_bias: shape `(out_features,)`, scaled like the product; None for most adapters.
        magnitude: DoRA's norm of each output, shape `(out_features,)`, or None.
        alpha: numerator of the scale.
        rslora: whether the scale is alpha / √rank.
        dropout: dropout probability while training.
        trainable: whether the factors train when they are switched on.
        compensates: whether the initial product compensates for a changed base (LoftQ) and is not subtracted.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_bias: nn.Parameter | None
    magnitude: nn.Parameter | None
    start_A: Tensor | None
    start_B: Tensor | None

    def __init__(self, layer: AdapterLayer, *, dropout: float = 0.0, trainable: bool = True) -> None:
        super().__init__()
        self.alpha, self.rslora = layer.alpha, layer.rslora
        self.kind: LayerKind = layer.kind
        self.dropout, self.trainable, self.compensates = dropout, trainable, False
        for name, tensor in (
            ("lora_A", layer.lora_A),
            ("lora_B", layer.lora_B),
            ("lora_bias", layer.bias),
            ("magnitude", layer.magnitude),
        ):
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=trainable))
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)

    @property
    def rank(self) -> int:
        """Number of rows of lora_A."""
        return self.lora_A.shape[0]

    @property
    def scaling(self) -> float:
        """The scale of the product."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def start(self) -> tuple[Tensor, Tensor] | None:
        """A₀ and B₀, whose product is subtracted from the update, so that it starts at zero; None if it does anyway."""
        return None if self.start_A is None or self.start_B is None else (self.start_A, self.start_B)

    def start_at(self, lora_A: Tensor, lora_B: Tensor) -> None:
        """Set the initial values of the factors; their product, unless it is zero, is subtracted from the update."""
        with torch.no_grad():
            self.lora_A.copy_(lora_A)
            self.lora_B.copy_(lora_B)
        moved = bool(lora_A.any()) and bool(lora_B.any())
        self.start_A = self.lora_A.detach().clone() if moved else None
        self.start_B = self.lora_B.detach().clone() if moved else None

    def stacked(self) -> tuple[Tensor, Tensor]:
        """The factors to compute with: B·A − B₀·A₀ as shapes `(rank, …)` and `(…, rank)`, or twice the rank."""
        return (self.lora_A, self.lora_B) if self.compensates else self._difference()

    def _difference(self) -> tuple[Tensor, Tensor]:
        if self.start is None:
            return self.lora_A, self.lora_B
        A0, B0 = self.start
        return torch.cat([self.lora_A, A0]), torch.cat([self.lora_B, -B0], dim=1)

    def layer(self) -> AdapterLayer:
        """What training changed, as copies; of twice the rank if an initial product is subtracted."""
        with torch.no_grad():
            A, B = (factor.clone() for factor in self._difference())
        share = A.shape[0] / self.rank
        alpha = self.alpha * (math.sqrt(share) if self.rslora else share)
        bias, magnitude = (None if t is None else t.detach().clone() for t in (self.lora_bias, self.magnitude))
        return AdapterLayer(A, B, alpha, rslora=self.rslora, kind=self.kind, bias=bias, magnitude=magnitude)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"rank={self.rank}, scaling={self.scaling:g}, dropout={self.dropout:g}"
