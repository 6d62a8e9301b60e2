"""The result of a training, as a value and as `train.json`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eckart.adapter import Adapter
from eckart.result import Result
from eckart.training.trajectory import Dynamics

FORMAT = "eckart-train/1"
RESULT_FILE = "train.json"


@dataclass(frozen=True, repr=False)
class TrainResult(Result):
    """The result of a training.

    Attributes:
        adapter: the trained adapter.
        output: the PEFT folder, if one was written.
        trainable_params: number of parameters that were trained.
        total_params: parameters of the model, adapter included; weights in four bits count in full.
        steps: optimizer steps.
        heldout_loss_before: loss of the model before training, in nats per target token of the held-out data.
        heldout_loss_after: the same with the adapter that was kept.
        heldout_tokens: number of these tokens.
        losses: loss of each step on its batch, by step.
        heldout_losses: held-out loss by the number of steps before it was measured.
        kept_step: the step whose adapter was kept.
        seconds: time of the steps, since the training was last resumed.
        peak_bytes: peak memory of the GPU, or else of the process.
        run: the model, data and settings.
        data: where the data come from, and what they consist of.
        dynamics: how the updates grew, if recorded.
        notes: what the user should know.
    """

    adapter: Adapter
    output: Path | None
    trainable_params: int
    total_params: int
    steps: int
    heldout_loss_before: float
    heldout_loss_after: float
    heldout_tokens: int
    losses: dict[int, float]
    heldout_losses: dict[int, float]
    kept_step: int
    seconds: float
    peak_bytes: int
    run: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    dynamics: Dynamics | None = None
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """The loss of each step."""
        return [{"step": step, "loss": loss} for step, loss in self.losses.items()]

    def to_json(self) -> dict[str, Any]:
        """The content of `train.json`."""
        return {
            "format": FORMAT,
            "output": None if self.output is None else str(self.output),
            "trainable_params": self.trainable_params,
            "total_params": self.total_params,
            "steps": self.steps,
            "heldout_loss_before": self.heldout_loss_before,
            "heldout_loss_after": self.heldout_loss_after,
            "heldout_tokens": self.heldout_tokens,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "notes": list(self.notes),
            "losses": {"step": list(self.losses), "loss": list(self.losses.values())},
            "heldout_losses": {"step": list(self.heldout_losses), "loss": list(self.heldout_losses.values())},
            "kept_step": self.kept_step,
            "run": self.run,
            "data": self.data,
        }
