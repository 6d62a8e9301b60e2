"""What a training did, as a value and as `train.json`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eckart.adapter import Adapter
from eckart.training.trajectory import Dynamics

FORMAT = "eckart-train/1"
RESULT_FILE = "train.json"


@dataclass(frozen=True)
class TrainResult:
    """What a training did.

    Attributes:
        adapter: as it was saved.
        output: the PEFT folder, if one was asked for.
        trainable_params: numbers that were trained.
        total_params: of the model, adapter included.
        steps: optimizer steps.
        heldout_loss_before: nats per held-out token to be learnt, of the model as it was.
        heldout_loss_after: the same with the adapter.
        heldout_tokens: how many these are.
        losses: of each step on its batch, by step.
        seconds: of the steps, since the last time that the training was taken up.
        peak_bytes: the most memory held, of the GPU or else of the process.
        run: what was trained on what, and how.
        dynamics: how the updates grew, if that was recorded.
        notes: what a user should know.
    """

    adapter: Adapter = field(repr=False)
    output: Path | None
    trainable_params: int
    total_params: int
    steps: int
    heldout_loss_before: float
    heldout_loss_after: float
    heldout_tokens: int
    losses: dict[int, float] = field(repr=False)
    seconds: float
    peak_bytes: int
    run: dict[str, Any] = field(repr=False)
    dynamics: Dynamics | None = field(repr=False, default=None)
    notes: tuple[str, ...] = ()

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
            "run": self.run,
        }
