"""How per-matrix work is executed: device, threads, memory, random seed, progress."""

import re
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eckart.engine.machine import core_count
from eckart.engine.progress import NoProgress, Progress
from eckart.engine.shard import Shard
from eckart.errors import OptionError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Execution:
    """How a computation is executed; only the seed changes its result beyond rounding.

    Attributes:
        device: `auto`, `cpu` or `cuda[:N]`.
        workers: matrices processed at once; None means one per core on the CPU, one on a GPU.
        memory_bytes: most memory that matrices in progress may take together.
        resume: reuse the finished matrices of an interrupted run, which are stored next to the output.
        seed: random seed.
        shard: the share of the matrices to work on, where several processes work on one output; None for all.
        progress: receives progress reports.
    """

    device: str = "auto"
    workers: int | None = None
    memory_bytes: int = 900 * 2**20
    resume: bool = True
    seed: int = 0
    shard: Shard | None = None
    progress: Progress = field(default_factory=NoProgress)

    def check(self) -> None:
        """Check the device and the number of workers before anything is read.

        Raises:
            OptionError: the device does not exist, `workers` is below 1, or a share is not to be resumed.
        """
        if self.shard is not None and not self.resume:
            msg = "a `shard` continues the work of others: delete the .partial folder next to the output to start over"
            raise OptionError(msg)
        if not re.fullmatch(r"auto|cpu(:\d+)?|cuda(:\d+)?", self.device):
            msg = f"`device` must be auto, cpu, cuda or cuda:N, got {self.device!r}"
            raise OptionError(msg)
        if self.device.startswith("cuda"):
            self.torch_device()  # only torch knows which GPUs exist; it is not imported to check anything else
        if self.workers is not None:
            self.worker_count()

    def torch_device(self) -> "torch.device":
        """The device to compute on.

        Raises:
            OptionError: the device is unknown or does not exist.
        """
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            device = None
        if device is None or device.type not in ("cpu", "cuda"):
            msg = f"`device` must be auto, cpu, cuda or cuda:N, got {self.device!r}"
            raise OptionError(msg)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            msg = f"`device={self.device}`: this machine has {count} CUDA devices; use `device=cpu`"
            raise OptionError(msg)
        return device

    def worker_count(self) -> int:
        """Number of worker threads.

        Raises:
            OptionError: `workers` is below 1.
        """
        if self.workers is not None:
            if self.workers < 1:
                msg = f"`workers` must be at least 1, got {self.workers}"
                raise OptionError(msg)
            return self.workers
        return 1 if self.torch_device().type == "cuda" else core_count()

    def generator(self, name: str) -> "torch.Generator":
        """A source of randomness for one matrix, independent of the order in which matrices are processed."""
        import torch

        # torch's CPU generator uses only the low 32 bits of its seed, so seed and name are hashed into those.
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
