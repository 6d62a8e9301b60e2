"""Where the metrics of a training are logged besides its own files: transformers' `report_to`."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from eckart.errors import MissingExtraError, OptionError
from eckart.training import rundir

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from eckart.training.trainer import AdapterTrainer

ReportTo = Literal["tensorboard", "wandb", "mlflow", "none"]
TENSORBOARD, NONE = "tensorboard", "none"


def check_report_to(report_to: Sequence[str] | None) -> None:
    """Refuse what is not known or not installed, without importing it.

    Raises:
        OptionError: a name is not that of an integration, or `none` is given with others.
        MissingExtraError: its library is not installed.
    """
    names = list(dict.fromkeys(report_to or ()))
    if unknown := [name for name in names if name not in get_args(ReportTo)]:
        msg = f"`report_to` must be one of {', '.join(get_args(ReportTo))}, got {unknown[0]!r}"
        raise OptionError(msg)
    if NONE in names and len(names) > 1:
        msg = f"`report_to=none` logs nowhere, but {', '.join(each for each in names if each != NONE)} is given too"
        raise OptionError(msg)
    if missing := [name for name in names if name != NONE and find_spec(name) is None]:
        msg = f"`report_to={missing[0]}` needs the library {missing[0]}: pip install {' '.join(missing)}"
        raise MissingExtraError(msg)


@contextmanager
def reporting(trainer: "AdapterTrainer", folder: Path, report_to: Sequence[str] | None, *, name: str) -> Iterator[None]:
    """Let transformers' integrations log what the trainer logs, and close them at the end of the block.

    Args:
        trainer: the trainer of the process that writes.
        folder: TensorBoard's files are written into its subfolder `tensorboard`, and may be removed after the block.
        report_to: the integrations; None for TensorBoard, if it is installed.
        name: of the run, in W&B and MLflow.
    """
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    default = [TENSORBOARD] if find_spec(TENSORBOARD) is not None else []
    names = default if report_to is None else [each for each in dict.fromkeys(report_to) if each != NONE]
    trainer.args.run_name = name
    with ExitStack() as stack:
        for each in names:
            if each == TENSORBOARD:
                stack.enter_context(_writing_tensorboard(trainer, folder / rundir.LOGS_FOLDER))
            else:
                (kind,) = get_reporting_integration_callbacks(each)
                reporter = _reporter(kind())
                trainer.add_callback(reporter)
                stack.callback(reporter.close, trainer)
        yield


def _reporter(integration: "TrainerCallback") -> Any:
    """An integration that stays open after the last step, for the held-out loss that is measured then."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        def on_train_begin(self, *given: Any, **context: Any) -> None:
            integration.on_train_begin(*given, **context)

        def on_log(self, *given: Any, **context: Any) -> None:
            integration.on_log(*given, **context)

        def close(self, trainer: "AdapterTrainer") -> None:
            integration.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.live)

    return Reporter()


@contextmanager
def _writing_tensorboard(trainer: "AdapterTrainer", folder: Path) -> Iterator[None]:
    """Write TensorBoard files; they are closed at the end of the block, since a thread of their own writes them.

    What the disk refuses of them ends no training and prints nothing: the results are not in them.
    """
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    before = threading.excepthook

    def report(failed: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(failed.thread).__module__.startswith("tensorboard")
        if not (of_tensorboard and isinstance(failed.exc_value, OSError)):
            before(failed)

    threading.excepthook = report
    try:
        with SummaryWriter(log_dir=str(folder)) as writer:
            trainer.add_callback(_reporter(TensorBoardCallback(writer)))
            yield
    finally:
        threading.excepthook = before
