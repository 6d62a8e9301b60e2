"""LoRA from nothing: a frozen matrix, a thin path beside it that learns, and its gradients by hand.

h = W0·x + s·B·A·x + b. A sample is a row of x here, so this reads h = x·W0ᵀ + s·(x·Aᵀ)·Bᵀ + b. All arrays are float64.

Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gradients:
    """Gradients of a loss: of the input, and of every part of a layer that it has.

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
    """A linear layer whose weight stays as it is while two thin factors beside it learn.

    Attributes:
        weight: W0, shape `(out, in)`; frozen.
        lora_A: shape `(rank, in)`.
        lora_B: shape `(out, rank)`.
        alpha: numerator of the scale s.
        rslora: s is α/√rank, as Kalajdzievski (2023) advises for high ranks, rather than α/rank.
        bias: of the layer itself, shape `(out,)`.
        lora_bias: of the factor B, shape `(out,)`: it is scaled as the product is.
        dropout: share p of the inputs that the thin path loses in training.
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
        """A layer that begins as its base: B is zero, so the update is; A is small and random, so that B can learn.

        Were both zero, neither would ever have a gradient. A is uniform in ±1/√in, which is Kaiming's with a = √5.
        """
        rows, columns = weight.shape
        limit = columns**-0.5
        return cls(weight, rng.uniform(-limit, limit, (rank, columns)), np.zeros((rows, rank)), alpha)

    @property
    def scaling(self) -> float:
        """What the product B·A is multiplied with."""
        rank = len(self.lora_A)
        return self.alpha / (rank**0.5 if self.rslora else rank)

    def delta(self) -> Array:
        """The update s·B·A as a whole matrix, shape `(out, in)`."""
        return self.scaling * self.lora_B @ self.lora_A

    def forward(self, x: Array, *, keep: NDArray[np.bool_] | None = None) -> Array:
        """The outputs, shape `(n, out)`; only the thin path sees dropout.

        Args:
            x: shape `(n, in)`.
            keep: shape `(n, in)`; which inputs the thin path keeps in this step of training; None is evaluation.
        """
        h = x @ self.weight.T + self.scaling * (self._dropped(x, keep) @ self.lora_A.T) @ self.lora_B.T
        if self.bias is not None:
            h = h + self.bias
        if self.lora_bias is not None:
            h = h + self.scaling * self.lora_bias
        return h

    def backward(self, x: Array, grad: Array, *, keep: NDArray[np.bool_] | None = None) -> Gradients:
        """The gradients, by the chain rule; W0 has none, for it is frozen.

        Args:
            x: shape `(n, in)`, what went into `forward`.
            grad: shape `(n, out)`, the gradient of the loss with respect to what came out.
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
        """One weight that does the work of both, shape `(out, in)`: a merged layer costs nothing when it is used."""
        return self.weight + self.delta()

    def merge_bias(self) -> Array:
        """The bias that goes with the merged weight, shape `(out,)`."""
        zero = np.zeros(len(self.weight))
        own = zero if self.bias is None else self.bias
        return own if self.lora_bias is None else own + self.scaling * self.lora_bias

    def unmerge(self, merged: Array) -> Array:
        """The base again, to rounding: (W0 + Δ) − Δ is rounded twice. Who wants the exact one back keeps it."""
        return merged - self.delta()

    def _dropped(self, x: Array, keep: NDArray[np.bool_] | None) -> Array:
        """What dropout leaves of x, enlarged so that the mean stays; gradients pass it the same way back."""
        return x if keep is None else x * keep / (1 - self.dropout)
