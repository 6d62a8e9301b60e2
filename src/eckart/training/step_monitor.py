"""What happens between the steps of a training: recording, progress, and stopping on request."""

import math
import threading
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from eckart.engine.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from eckart.training.dynamics import DynamicsRecorder
    from eckart.training.trainer import AdapterTrainer


EVALUATIONS = 10  # of the held-out loss in a training, unless an interval is given


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
        eval_every: int | None,
        keep_best: bool,
    ) -> None:
        """Observe a trainer.

        Args:
            trainer: the trainer that calls this.
            progress: receives the steps.
            stop: set if the training should stop after the step.
            heldout_loss: loss before the first step, for the record.
            make_recorder: makes a recorder for a number of steps; None records nothing.
            eval_every: steps between measurements of the held-out loss; None for a tenth of all steps.
            keep_best: whether the weights with the lowest one are kept.
        """
        self.trainer = trainer
        self.progress = progress
        self.stop = stop
        self.heldout_loss = heldout_loss
        self.make_recorder = make_recorder
        self.eval_every = eval_every
        self.keep_best = keep_best
        self.latest = ""  # held-out loss, for the progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the factors before the first step."""
        self.progress.start("Training", state.max_steps, "steps")
        self.progress.update(state.global_step)
        if self.make_recorder is not None and state.is_world_process_zero:
            self.trainer.recorder = self.make_recorder(state.max_steps)
            self.trainer.recorder.record(self.trainer.live, state.global_step)
            self.trainer.recorder.log(0, heldout_loss=self.heldout_loss)
        if state.global_step == 0:
            self.trainer.log_heldout_loss(self.heldout_loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Record the updates, and stop with a checkpoint if any process was asked to."""
        if self.trainer.recorder is not None:
            self.trainer.recorder.record(self.trainer.live, state.global_step)
        if state.global_step < state.max_steps and state.global_step % self._interval(state.max_steps) == 0:
            self._evaluate(state)
        if self.trainer.summed([self.stop.is_set()])[0]:
            self.stop.set()
            control.should_save = control.should_training_stop = True
        return control

    def _interval(self, steps: int) -> int:
        return self.eval_every or math.ceil(steps / EVALUATIONS)

    def _evaluate(self, state: Any) -> None:
        """Measure the held-out loss; the last step is measured after training."""
        loss, _ = self.trainer.heldout_loss()
        self.trainer.log_heldout_loss(loss)
        self.latest = f", held-out {loss:.4f}"
        if self.trainer.recorder is not None:
            self.trainer.recorder.log(state.global_step, heldout_loss=loss)
        if self.keep_best:
            self.trainer.keep_if_best(loss)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Report the loss of the step."""
        logs = logs or {}
        if "loss" not in logs:
            return
        self.progress.update(1, f"loss {logs['loss']:.4f}{self.latest}")
        if self.trainer.recorder is not None:
            self.trainer.recorder.log(
                state.global_step,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                gradient_norm=logs.get("grad_norm"),
            )
