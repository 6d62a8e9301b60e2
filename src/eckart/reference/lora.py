"""LoRA from scratch: a frozen matrix, a trained low-rank path in parallel, and its gradients by hand.

h = W0·x + s·B·A·x + b. A sample is a row of x here, so this reads h = x·W0ᵀ + s·(x·Aᵀ)·Bᵀ + b. All arrays are float64.

Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gradients:
    """Gradients of a loss with respect to the input and to each trained part of a layer.

    Attributes:
        x: shape `(n, in)`.
        lora_A: shape `(rank, in)`.
        lora_B: shape `(out, rank)`.
        bias: shape `(out,)`.
        lora_bias: shape `(out,)`.
        magnitude: shape `(out,)`.
    """

    x: Array
    lora_A: Array
    lora_B: Array
    bias: Array | None = None
    lora_bias: Array | None = None
    magnitude: Array | None = None


@dataclass
class LoRA:
    """A linear layer with a frozen weight and two trained low-rank factors.

    Attributes:
        weight: W0, shape `(out, in)`; frozen.
        lora_A: shape `(rank, in)`.
        lora_B: shape `(out, rank)`.
        alpha: numerator of the scale s.
        rslora: s is α/√rank, as Kalajdzievski (2023) advises for high ranks, rather than α/rank.
        bias: bias of the layer, shape `(out,)`.
        lora_bias: bias of the factor B, shape `(out,)`; scaled like the product.
        dropout: share p of its inputs that the low-rank path drops in training.
    """

    weight: Array
    lora_A: Array
    lora_B: Array
    alpha: float
    rslora: bool = False
    bias: Array | None = None
    lora_bias: Array | None = None
    dropout: float = 0.0

    @classmethod
    def start(cls, weight: Array, *, rank: int, alpha: float, rng: np.random.Generator) -> "LoRA":
        """A layer that initially computes the same as its base: B is zero; A is small and random, so that B can learn.

        If both were zero, neither would ever get a gradient. A is uniform in ±1/√in: Kaiming initialization, a = √5.
        """
        rows, columns = weight.shape
        limit = columns**-0.5
        return cls(weight, rng.uniform(-limit, limit, (rank, columns)), np.zeros((rows, rank)), alpha)

    @property
    def scaling(self) -> float:
        """The factor s on the product B·A."""
        rank = len(self.lora_A)
        return self.alpha / (rank**0.5 if self.rslora else rank)

    def delta(self) -> Array:
        """The update s·B·A as a dense matrix, shape `(out, in)`."""
        return self.scaling * self.lora_B @ self.lora_A

    def forward(self, x: Array, *, keep: NDArray[np.bool_] | None = None) -> Array:
        """The outputs, shape `(n, out)`; dropout applies to the low-rank path only.

        Args:
            x: shape `(n, in)`.
            keep: shape `(n, in)`; inputs that the low-rank path keeps in this training step; None in evaluation.
        """
        h = x @ self.weight.T + self.scaling * (self._dropped(x, keep) @ self.lora_A.T) @ self.lora_B.T
        if self.bias is not None:
            h = h + self.bias
        if self.lora_bias is not None:
            h = h + self.scaling * self.lora_bias
        return h

    def backward(self, x: Array, grad: Array, *, keep: NDArray[np.bool_] | None = None) -> Gradients:
        """The gradients, by the chain rule; W0 has none because it is frozen.

        Args:
            x: shape `(n, in)`, the input of `forward`.
            grad: shape `(n, out)`, the gradient of the loss with respect to its output.
            keep: the same as in `forward`.
        """
        inputs = self._dropped(x, keep)
        hidden = inputs @ self.lora_A.T
        grad_hidden = self.scaling * grad @ self.lora_B
        return Gradients(
            x=grad @ self.weight + self._dropped(grad_hidden @ self.lora_A, keep),
            lora_A=grad_hidden.T @ inputs,
            lora_B=self.scaling * grad.T @ hidden,
            bias=None if self.bias is None else grad.sum(0),
            lora_bias=None if self.lora_bias is None else self.scaling * grad.sum(0),
        )

    def merge(self) -> Array:
        """The merged weight, shape `(out, in)`: a merged layer has no overhead in inference."""
        return self.weight + self.delta()

    def merge_bias(self) -> Array:
        """The bias of the merged layer, shape `(out,)`."""
        zero = np.zeros(len(self.weight))
        own = zero if self.bias is None else self.bias
        return own if self.lora_bias is None else own + self.scaling * self.lora_bias

    def unmerge(self, merged: Array) -> Array:
        """The base weight, restored to rounding: (W0 + Δ) − Δ is rounded twice. Only a saved copy is exact."""
        return merged - self.delta()

    def _dropped(self, x: Array, keep: NDArray[np.bool_] | None) -> Array:
        """Inputs after dropout, rescaled so that the mean is unchanged; gradients use the same mask and scale."""
        return x if keep is None else x * keep / (1 - self.dropout)
