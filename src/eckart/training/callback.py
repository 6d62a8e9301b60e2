"""What happens between the steps of a training: recording, telling, and stopping when asked to."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from eckart.training.watching import Interruption, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from eckart.training.dynamics import DynamicsRecorder
    from eckart.training.trainer import AdapterTrainer


class BetweenSteps(TrainerCallback):
    """Called by transformers' trainer.

    Attributes:
        trainer: set once there is one.
        heldout_loss: before the first step, once it is known.
        record: makes the recorder for a run of so many steps, or is None.
    """

    trainer: "AdapterTrainer"
    heldout_loss: float | None = None

    def __init__(
        self,
        watcher: Watcher,
        interruption: Interruption,
        record: "Callable[[int], DynamicsRecorder] | None",
    ) -> None:
        self.watcher = watcher
        self.interruption = interruption
        self.record = record

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record where the factors start."""
        self.watcher.at("training", state.global_step, state.max_steps)
        if self.record is not None and state.is_world_process_zero:
            self.trainer.recorder = self.record(state.max_steps)
            self.trainer.recorder.record(self.trainer.live, state.global_step)
            self.trainer.recorder.log(0, heldout_loss=self.heldout_loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Record the updates, and stop with a checkpoint if that was asked for in any process."""
        if self.trainer.recorder is not None:
            self.trainer.recorder.record(self.trainer.live, state.global_step)
        if self.trainer.summed([self.interruption.asked])[0]:
            self.interruption.asked = True
            control.should_save = control.should_training_stop = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Tell the loss of the step."""
        logs = logs or {}
        if "loss" not in logs:
            return
        self.watcher.at("training", state.global_step, state.max_steps, logs["loss"])
        if self.trainer.recorder is not None:
            self.trainer.recorder.log(
                state.global_step,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                gradient_norm=logs.get("grad_norm"),
            )
