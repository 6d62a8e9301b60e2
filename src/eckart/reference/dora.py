"""DoRA from scratch: a weight as a magnitude and a direction per output; LoRA trains the direction.

Liu et al. (2024), "DoRA: Weight-Decomposed Low-Rank Adaptation". The paper normalizes the columns of a weight stored as
(in, out); a weight stored as (out, in) has its outputs as rows.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eckart.reference.lora import Array, Gradients, LoRA


@dataclass
class DoRA:
    """The weight m ⊙ (W0 + s·B·A)/‖W0 + s·B·A‖, where ‖·‖ is the norm of each row; the bias is not scaled.

    Attributes:
        direction: W0 with its factors, whose rows give the directions; it has no bias.
        magnitude: m, shape `(out,)`.
        bias: bias of the layer, shape `(out,)`.
    """

    direction: LoRA
    magnitude: Array
    bias: Array | None = None

    @classmethod
    def start(cls, lora: LoRA) -> "DoRA":
        """A layer that computes the same as the LoRA layer: the magnitudes are the norms of its rows.

        Raises:
            ValueError: the layer has a `lora_bias`, which DoRA does not support.
        """
        if lora.lora_bias is not None:
            msg = "DoRA does not support lora_bias: leave it None"
            raise ValueError(msg)
        return cls(replace(lora, bias=None), np.linalg.norm(lora.merge(), axis=1), lora.bias)

    def gain(self) -> Array:
        """The factor on each output, m/‖W0 + s·B·A‖, shape `(out,)`."""
        return self.magnitude / np.linalg.norm(self.direction.merge(), axis=1)

    def forward(self, x: Array, *, keep: NDArray[np.bool_] | None = None) -> Array:
        """The outputs, shape `(n, out)`; dropout applies to the low-rank path only, and the norms ignore it."""
        h = self.gain() * self.direction.forward(x, keep=keep)
        return h if self.bias is None else h + self.bias

    def backward(self, x: Array, grad: Array, *, keep: NDArray[np.bool_] | None = None) -> Gradients:
        """The gradients with the norm treated as a constant, as section 4.3 of the paper proposes to save memory.

        The factors are then trained through the numerator alone; the exact gradient has no component along a row.
        """
        norm = np.linalg.norm(self.direction.merge(), axis=1)
        return replace(
            self.direction.backward(x, self.gain() * grad, keep=keep),
            magnitude=(grad * self.direction.forward(x, keep=keep)).sum(0) / norm,
            bias=None if self.bias is None else grad.sum(0),
        )

    def merge(self) -> Array:
        """The merged weight, shape `(out, in)`, which computes the same as base, factors and magnitude."""
        return self.gain()[:, None] * self.direction.merge()

    def unmerge(self, merged: Array) -> Array:
        """The base weight, restored to rounding."""
        return self.direction.unmerge(merged / self.gain()[:, None])
