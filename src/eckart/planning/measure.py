"""One real training step on this machine, in a separate process, and the memory that the process took."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eckart.engine.machine import available_bytes
from eckart.errors import EckartError, OptionError
from eckart.planning.architecture import read_architecture
from eckart.planning.memory import RESERVED_BYTES
from eckart.planning.setting import Method, PlanSetting
from eckart.planning.simulation import simulate
from eckart.planning.subject import subject_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Heap = Literal["usual", "tight"]

_WORKER = "eckart.planning.measured_step"
_HEAPS = {"usual": {}, "tight": {"MALLOC_MMAP_THRESHOLD_": str(2**16)}}


@dataclass(frozen=True)
class PredictionCheck:
    """A prediction for this machine's CPU compared with a real step.

    Attributes:
        method: the training method.
        predicted_bytes: peak memory by simulation.
        measured_bytes: peak memory of model and step in a real process.
        seconds: time of the step.
    """

    method: Method
    predicted_bytes: int
    measured_bytes: int
    seconds: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted_bytes / self.measured_bytes - 1

    def to_json(self) -> dict[str, Any]:
        """The same for scripts."""
        return {**vars(self), "error": self.error}


def check_prediction(
    model: "str | Path | Mapping[str, Any] | PretrainedConfig", setting: PlanSetting
) -> PredictionCheck:
    """Run a real training step with random weights on this machine's CPU, and compare its memory with a simulation.

    Args:
        model: as `plan` takes it, but not a number of parameters.
        setting: the setting to check.

    Raises:
        OptionError: there is no config, or this machine's memory is too small.
        EckartError: the step failed.
    """
    name, _, config = subject_of(model)
    if isinstance(config, int):
        msg = f"{name} cannot be measured; give a model whose config is known"
        raise OptionError(msg)
    predicted = simulate(config, setting, device="cpu").peak_bytes
    free = available_bytes()
    needed = setting.gpus * predicted
    if needed + RESERVED_BYTES > free:
        msg = f"`measure` needs {needed / 1e9:.1f} GB of memory on this machine, and {free / 1e9:.1f} GB are free"
        raise OptionError(msg)
    return PredictionCheck(setting.method, predicted, *measure(config, setting))


def measure(
    config: "str | Path | Mapping[str, Any] | PretrainedConfig", setting: PlanSetting, *, heap: Heap = "tight"
) -> tuple[int, float]:
    """Train a model of this architecture, with random weights, for some steps on this machine's CPU.

    Args:
        config: what `read_architecture` takes.
        setting: how to train, and the size of a step.
        heap: with `tight`, glibc returns each block as soon as it is freed, so only tensors are measured. With
            `usual`, the C library retains some freed memory for later tensors, as it does by default.

    Returns:
        peak memory of model and step in bytes, comparable with a simulation, and the seconds of the second step. The
        memory is the process's peak less what it took before: interpreter, libraries, and what those set up in a short
        step of the same model, which was then freed.

    Raises:
        OptionError: this system cannot reset the peak memory of a process: it is not Linux.
        EckartError: the step failed; the message ends with Python's last line.
    """
    if not Path("/proc/self/clear_refs").exists():
        msg = "measuring a training step needs Linux, which can reset the peak memory of a process"
        raise OptionError(msg)
    with tempfile.TemporaryDirectory(prefix="eckart-measure-") as folder:
        meeting = str(Path(folder) / "meeting")
        task = {"config": read_architecture(config).to_dict(), "setting": asdict(setting), "meeting": meeting}
        with ThreadPoolExecutor(setting.gpus) as pool:
            results = list(pool.map(lambda rank: _measure_one(task, rank, heap), range(setting.gpus)))
    return max(taken for taken, _ in results), max(seconds for _, seconds in results)


def _measure_one(task: dict[str, Any], rank: int, heap: Heap) -> tuple[int, float]:
    """Memory and seconds of one of the processes that take part in the step."""
    # A new interpreter, because memory that this one has freed may not have been returned to the system.
    command = [sys.executable, "-m", _WORKER]
    environment = os.environ | _HEAPS[heap] | {"RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it was killed, perhaps for lack of memory"])[-1]
        msg = f"the measured step ended with status {done.returncode}: {last}"
        raise EckartError(msg)
    measured = json.loads(done.stdout.splitlines()[-1])
    return measured["process_bytes"] - measured["baseline_bytes"], measured["seconds"]
