"""The memory of one training step: simulated, or estimated where the model's code cannot run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from eckart.planning.memory import Part
from eckart.planning.setting import PlanSetting


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The memory of one training step at its peak.

    Attributes:
        setting: how to train, and the size of the step.
        peak_bytes: most bytes of tensors alive at once, the sum of `parts`.
        parts: the peak by `PARTS`: the base's weights and buffers; factors and magnitudes; gradients of the trained
            parameters; the optimizer's states; what the forward pass saves for the backward pass; everything else
            (inputs, logits and their gradient, working memory).
        trainable_params: number of trained parameters.
        total_params: parameters of the model, adapters included.
        source: how the numbers were obtained.
        where: module and phase at the peak, if simulated: `model.layers.3.mlp, backward`.
        layers: the numbers of layers that were simulated instead of all; None if all were.
        seconds: time that the simulation took.
        details: the part `other` of a simulation, divided into `logits and loss`, `temporary` and `inputs`.
        notes: how the simulated step differs from the requested one, in words.
    """

    setting: PlanSetting
    peak_bytes: int
    parts: Mapping[Part, int]
    trainable_params: int
    total_params: int
    source: Literal["simulation", "estimate"] = "simulation"
    where: str = ""
    layers: tuple[int, int] | None = None
    seconds: float = 0.0
    details: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields that scripts rely on, for this method."""
        return {
            "method": self.setting.method,
            "batch_size": self.setting.batch_size,
            "max_length": self.setting.length,
            "gradient_checkpointing": self.setting.gradient_checkpointing,
            "peak_bytes": self.peak_bytes,
            "parts": dict(self.parts),
            "trainable_params": self.trainable_params,
            "total_params": self.total_params,
            "source": self.source,
            "where": self.where or None,
            "layers_simulated": list(self.layers) if self.layers else None,
        }
