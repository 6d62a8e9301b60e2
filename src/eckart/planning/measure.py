"""One real training step on this machine, in a separate process, and the memory that the process took."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eckart.errors import EckartError, OptionError
from eckart.planning.architecture import read_architecture
from eckart.planning.setting import PlanSetting

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Heap = Literal["usual", "tight"]

_WORKER = "eckart.planning.measured_step"
_HEAPS = {"usual": {}, "tight": {"MALLOC_MMAP_THRESHOLD_": str(2**16)}}


@dataclass(frozen=True)
class Measurement:
    """Resident memory of a process that trained on the CPU, as the system counts it.

    Attributes:
        process_bytes: peak, libraries included.
        baseline_bytes: before: interpreter, libraries, and what those set up in a short step of the same model, which
            was then freed.
        seconds: time of the second step.
    """

    process_bytes: int
    baseline_bytes: int
    seconds: float

    @property
    def peak_bytes(self) -> int:
        """Memory of model and step, to be compared with `Simulation.peak_bytes`."""
        return self.process_bytes - self.baseline_bytes


def measure(
    config: "str | Path | Mapping[str, Any] | PretrainedConfig", setting: PlanSetting, *, heap: Heap = "tight"
) -> Measurement:
    """Train a model of this architecture, with random weights, for some steps on this machine's CPU.

    Args:
        config: what `read_architecture` takes.
        setting: how to train, and the size of a step.
        heap: with `tight`, glibc returns each block as soon as it is freed, so only tensors are measured. With
            `usual`, the C library retains some freed memory for later tensors, as it does by default.

    Raises:
        OptionError: this system cannot reset the peak memory of a process: it is not Linux.
        EckartError: the step failed; the message ends with Python's last line.
    """
    if not Path("/proc/self/clear_refs").exists():
        msg = "measuring a training step needs Linux, which can reset the peak memory of a process"
        raise OptionError(msg)
    task = {"config": read_architecture(config).to_dict(), "setting": asdict(setting)}
    # A new interpreter, because memory that this one has freed may not have been returned to the system.
    command, environment = [sys.executable, "-m", _WORKER], os.environ | _HEAPS[heap]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it was killed, perhaps for lack of memory"])[-1]
        msg = f"the measured step ended with status {done.returncode}: {last}"
        raise EckartError(msg)
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))
