"""One real training step on this machine, in a process of its own, and the memory that the process took."""

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
    """What a process took that trained on the CPU, by the system's account of its resident memory.

    Attributes:
        process_bytes: the most that it held at once, libraries and all.
        baseline_bytes: what it held before: interpreter, libraries, and what those had set up in a short step of the
            same model, which was then let go.
        seconds: of the second step.
    """

    process_bytes: int
    baseline_bytes: int
    seconds: float

    @property
    def peak_bytes(self) -> int:
        """What model and step took, to be held against `Simulation.peak_bytes`."""
        return self.process_bytes - self.baseline_bytes


def measure(
    config: "str | Path | Mapping[str, Any] | PretrainedConfig", setting: PlanSetting, *, heap: Heap = "tight"
) -> Measurement:
    """Train a model of this architecture, with weights drawn at random, for some steps on this machine's CPU.

    Args:
        config: what `read_architecture` takes.
        setting: how to train, and on how much.
        heap: with `tight` glibc gives back each block as it is freed, so that tensors alone are measured. `usual` is
            the C library as it is, which keeps some of what is freed, and finds room there for later tensors or not.

    Raises:
        OptionError: this system does not tell a process' peak memory.
        EckartError: the step failed; the message ends with what Python said last.
    """
    if not Path("/proc/self/clear_refs").exists():
        msg = "measuring needs Linux, which tells the peak memory of a process"
        raise OptionError(msg)
    task = {"config": read_architecture(config).to_dict(), "setting": asdict(setting)}
    # A fresh interpreter: memory that this one has freed may not go back to the system.
    command, environment = [sys.executable, "-m", _WORKER], os.environ | _HEAPS[heap]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it was killed, as by a lack of memory"])[-1]
        msg = f"the measured step ended with status {done.returncode}: {last}"
        raise EckartError(msg)
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))
