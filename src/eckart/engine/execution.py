"""How per-matrix work is run: where, on how many threads, in how much memory, told to whom."""

import os
import zlib
from dataclasses import dataclass, field

import torch

from eckart.engine.progress import NoProgress, Progress
from eckart.errors import OptionError


@dataclass(frozen=True)
class Execution:
    """The circumstances of a computation; none of them changes its result beyond rounding.

    Attributes:
        device: `auto`, `cpu` or `cuda[:N]`.
        workers: matrices worked on at once; None is one a core on the CPU, one on a GPU.
        memory_bytes: what the matrices being worked on may hold together.
        resume: keep finished matrices beside the output, and go on from those of an earlier run.
        seed: of every random start.
        progress: told what is done.
    """

    device: str = "auto"
    workers: int | None = None
    memory_bytes: int = 900 * 2**20
    resume: bool = True
    seed: int = 0
    progress: Progress = field(default_factory=NoProgress)

    def check(self) -> None:
        """Refuse what is not there, before anything is read.

        Raises:
            OptionError: the device or the number of workers cannot be had.
        """
        self.torch_device()
        self.worker_count()

    def torch_device(self) -> torch.device:
        """The device to compute on.

        Raises:
            OptionError: the device is unknown or not there.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            device = None
        if device is None or device.type not in ("cpu", "cuda"):
            msg = f"--device {self.device}: expected auto, cpu, cuda or cuda:N"
            raise OptionError(msg)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            msg = f"--device {self.device}: this machine has {torch.cuda.device_count()} CUDA devices; try --device cpu"
            raise OptionError(msg)
        return device

    def worker_count(self) -> int:
        """Threads to work on.

        Raises:
            OptionError: fewer than one was asked for.
        """
        if self.workers is not None:
            if self.workers < 1:
                msg = f"workers must be at least 1, got {self.workers}"
                raise OptionError(msg)
            return self.workers
        return 1 if self.torch_device().type == "cuda" else len(os.sched_getaffinity(0))

    def generator(self, name: str) -> torch.Generator:
        """A source of randomness for one matrix: the same whatever order the matrices are worked in."""
        # torch's generator on the CPU hears only the low 32 bits of its seed: both must be in them.
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
