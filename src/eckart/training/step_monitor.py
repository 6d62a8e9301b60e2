"""What happens between the steps of a training: recording, progress, and stopping on request."""

import threading
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from eckart.engine.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from eckart.training.dynamics import DynamicsRecorder
    from eckart.training.trainer import AdapterTrainer


class StepMonitor(TrainerCallback):
    """Called by transformers' trainer at the start and after every step."""

    def __init__(
        self,
        trainer: "AdapterTrainer",
        progress: Progress,
        stop: threading.Event,
        *,
        heldout_loss: float,
        make_recorder: "Callable[[int], DynamicsRecorder] | None",
    ) -> None:
        """Observe a trainer.

        Args:
            trainer: the trainer that calls this.
            progress: receives the steps.
            stop: set if the training should stop after the step.
            heldout_loss: loss before the first step, for the record.
            make_recorder: makes a recorder for a number of steps; None records nothing.
        """
        self.trainer = trainer
        self.progress = progress
        self.stop = stop
        self.heldout_loss = heldout_loss
        self.make_recorder = make_recorder

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the factors before the first step."""
        self.progress.start("Training", state.max_steps, "steps")
        self.progress.update(state.global_step)
        if self.make_recorder is not None and state.is_world_process_zero:
            self.trainer.recorder = self.make_recorder(state.max_steps)
            self.trainer.recorder.record(self.trainer.live, state.global_step)
            self.trainer.recorder.log(0, heldout_loss=self.heldout_loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Record the updates, and stop with a checkpoint if any process was asked to."""
        if self.trainer.recorder is not None:
            self.trainer.recorder.record(self.trainer.live, state.global_step)
        if self.trainer.summed([self.stop.is_set()])[0]:
            self.stop.set()
            control.should_save = control.should_training_stop = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Report the loss of the step."""
        logs = logs or {}
        if "loss" not in logs:
            return
        self.progress.update(1, f"loss {logs['loss']:.4f}")
        if self.trainer.recorder is not None:
            self.trainer.recorder.log(
                state.global_step,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                gradient_norm=logs.get("grad_norm"),
            )
