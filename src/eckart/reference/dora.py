"""DoRA from nothing: a weight as a length and a direction for each output; LoRA turns the direction, the length learns.

Liu et al. (2024), "DoRA: Weight-Decomposed Low-Rank Adaptation". The paper writes columns of a weight that lies as
(in, out); a weight that lies as (out, in) has its outputs as rows.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eckart.reference.lora import Array, Gradients, LoRA


@dataclass
class DoRA:
    """The weight m ⊙ (W0 + s·B·A)/‖W0 + s·B·A‖, where ‖·‖ is the norm of each row; the bias is not scaled.

    Attributes:
        direction: W0 with its factors, whose rows give the directions; it has no bias of its own.
        magnitude: m, shape `(out,)`.
        bias: of the layer itself, shape `(out,)`.
    """

    direction: LoRA
    magnitude: Array
    bias: Array | None = None

    @classmethod
    def start(cls, lora: LoRA) -> "DoRA":
        """A layer that begins as the LoRA layer does: the magnitudes are the norms that are there.

        Raises:
            ValueError: the layer has a `lora_bias`, for which DoRA has no place.
        """
        if lora.lora_bias is not None:
            msg = "DoRA scales rows of a weight and has no place for lora_bias: leave it None"
            raise ValueError(msg)
        return cls(replace(lora, bias=None), np.linalg.norm(lora.merge(), axis=1), lora.bias)

    def gain(self) -> Array:
        """What each output is multiplied with, m/‖W0 + s·B·A‖, shape `(out,)`."""
        return self.magnitude / np.linalg.norm(self.direction.merge(), axis=1)

    def forward(self, x: Array, *, keep: NDArray[np.bool_] | None = None) -> Array:
        """The outputs, shape `(n, out)`; dropout is on the thin path, and the norms are those of the whole weight."""
        h = self.gain() * self.direction.forward(x, keep=keep)
        return h if self.bias is None else h + self.bias

    def backward(self, x: Array, grad: Array, *, keep: NDArray[np.bool_] | None = None) -> Gradients:
        """The gradients with the norm held constant, as section 4.3 of the paper proposes to save memory.

        The factors then learn through the numerator alone; the exact gradient would lose what points along a row.
        """
        norm = np.linalg.norm(self.direction.merge(), axis=1)
        return replace(
            self.direction.backward(x, self.gain() * grad, keep=keep),
            magnitude=(grad * self.direction.forward(x, keep=keep)).sum(0) / norm,
            bias=None if self.bias is None else grad.sum(0),
        )

    def merge(self) -> Array:
        """The weight that does the work of all parts, shape `(out, in)`."""
        return self.gain()[:, None] * self.direction.merge()

    def unmerge(self, merged: Array) -> Array:
        """The base again, to rounding."""
        return self.direction.unmerge(merged / self.gain()[:, None])
