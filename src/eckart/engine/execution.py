"""How per-matrix work is executed: device, threads, memory, random seed, progress."""

import re
import zlib
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eckart.engine.connection import connect
from eckart.engine.machine import core_count
from eckart.engine.progress import NoProgress, Progress
from eckart.engine.shard import Shard
from eckart.errors import OptionError

if TYPE_CHECKING:
    import torch

_DEVICE = r"auto|cpu(:\d+)?|cuda(:\d+)?"
_worker_device: "ContextVar[torch.device]" = ContextVar("worker_device")  # of the thread that does a task


def use_device(device: "torch.device") -> None:
    """Let the tasks of this thread compute on one of several devices."""
    _worker_device.set(device)


@dataclass(frozen=True)
class Execution:
    """How a computation is executed; only the seed changes its result beyond rounding.

    Attributes:
        device: `auto`, `cpu`, `cuda` for all GPUs, or `cuda:N`; several are separated by commas.
        workers: matrices processed at once; None means one per core on the CPU, one on each GPU, and on a cluster as
            many as its nodes have cores or GPUs.
        memory_bytes: most memory that matrices in progress may take together; a node of a cluster has its own limit.
        resume: reuse the finished matrices of an interrupted run, which are stored next to the output.
        seed: random seed.
        shard: the share of the matrices to work on, where several processes work on one output; None for all.
        collect: compute nothing: finish an output from what all shares have stored, or refuse.
        ray: address of the Ray cluster to work on, as `HOST:PORT`, or `auto` for the one that this machine is part of;
            None to work in this process.
        progress: receives progress reports.
    """

    device: str = "auto"
    workers: int | None = None
    memory_bytes: int = 900 * 2**20
    resume: bool = True
    seed: int = 0
    shard: Shard | None = None
    collect: bool = False
    ray: str | None = None
    progress: Progress = field(default_factory=NoProgress)

    def check(self) -> None:
        """Check the device, the number of workers and the cluster before anything is read.

        Raises:
            OptionError: the device does not exist, `workers` is below 1, or a share is not to be resumed or is one of a
                cluster's work, or is to be collected at the same time.
            MissingExtraError: a cluster is to be used, and Ray is not installed.
            ClusterError: it cannot be reached or used.
        """
        if self.shard is not None and not self.resume:
            msg = "a `shard` continues the work of others: delete the .partial folder next to the output to start over"
            raise OptionError(msg)
        if self.collect and (self.shard is not None or self.ray is not None or not self.resume):
            msg = "`collect` only finishes what shares have done: leave `shard`, `ray` and `resume=False` out"
            raise OptionError(msg)
        self._names()
        if self.workers is not None:
            self.worker_count()
        if self.ray is not None:
            if self.shard is not None:
                msg = "`ray` divides the work among its nodes itself: leave `shard` out"
                raise OptionError(msg)
            connect(self.ray)
        elif "cuda" in self.device:
            self.devices()  # only torch knows which GPUs exist; it is not imported to check anything else

    @property
    def several_machines(self) -> bool:
        """Whether another machine than the one that finishes an output may write parts of it."""
        return self.shard is not None or self.ray is not None

    def torch_device(self) -> "torch.device":
        """The device to compute on: that of the worker, if this is one, or else the first.

        Raises:
            OptionError: the device is unknown or does not exist.
        """
        return _worker_device.get(None) or self.devices()[0]

    def devices(self) -> "list[torch.device]":
        """All devices of this machine to compute on.

        Raises:
            OptionError: a device is unknown or does not exist.
        """
        import torch

        count, found = torch.cuda.device_count(), []
        for name in self._names():
            kind, _, index = name.partition(":")
            if kind == "cuda" or (kind == "auto" and torch.cuda.is_available()):
                numbers = [int(index)] if index else range(max(count, 1))
                if max(numbers) >= count:
                    msg = f"`device={name}`: this machine has {count} CUDA devices; use `device=cpu`"
                    raise OptionError(msg)
                found += [torch.device("cuda", number) for number in numbers]
            else:
                found.append(torch.device("cpu", int(index)) if index else torch.device("cpu"))
        return found

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
        devices = self.devices()
        return len(devices) if len(devices) > 1 or devices[0].type == "cuda" else core_count()

    def _names(self) -> list[str]:
        names = self.device.split(",")
        if not all(re.fullmatch(_DEVICE, name) for name in names):
            msg = f"`device` must be auto, cpu, cuda or cuda:N, got {self.device!r}"
            raise OptionError(msg)
        return names

    def generator(self, name: str) -> "torch.Generator":
        """A source of randomness for one matrix, independent of the order in which matrices are processed."""
        import torch

        # torch's CPU generator uses only the low 32 bits of its seed, so seed and name are hashed into those.
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))

    def __getstate__(self) -> dict[str, Any]:
        """What a worker elsewhere needs: everything but the progress, which is reported here."""
        return self.__dict__ | {"progress": NoProgress()}
