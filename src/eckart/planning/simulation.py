"""What a simulated training step takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from eckart.errors import EckartError

Part = Literal["weights", "adapters", "gradients", "optimizer", "activations", "other"]
PARTS: tuple[Part, ...] = get_args(Part)


class SimulationError(EckartError):
    """A model whose step cannot be run on tensors without data; a closed form has to serve."""


@dataclass(frozen=True)
class Simulation:
    """The memory of one training step, at the moment when it is highest.

    Attributes:
        peak_bytes: most bytes of tensors alive at once, the sum of `parts`.
        parts: of the peak, by `PARTS`: the base's weights and buffers; factors and magnitudes; gradients of what
            trains; the optimizer's states; what the forward pass keeps for the backward pass; all else (inputs,
            logits and their gradient, working memory).
        details: of `other` and `activations`, told apart: `logits and loss`, `temporary`, `inputs`.
        where: the module at work at the peak and the phase: `model.layers.3.mlp, backward`.
        trainable_params: numbers that train.
        total_params: of the model, adapters included.
        seconds: that the simulation took.
        notes: what was modelled otherwise than it runs, in words.
    """

    peak_bytes: int
    parts: Mapping[Part, int]
    where: str
    trainable_params: int
    total_params: int
    seconds: float
    details: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
