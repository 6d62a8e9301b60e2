"""What a worker on a node of a cluster does: it opens the sources of a stage once, and runs some of its tasks."""

import io
import os
import pickle
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from threadpoolctl import threadpool_limits

from eckart.engine.execution import use_device
from eckart.engine.task import Task
from eckart.errors import ClusterError

NO_MEMORY = (
    "{node} ran out of memory at {names}: process fewer matrices at once, with a lower `workers`, or start Ray on the "
    "node with fewer cores or less memory to hand out"
)


@dataclass(frozen=True)
class Batch:
    """The results of some tasks, up to the first that failed.

    Attributes:
        node: name of the node.
        results: pickled list.
        error: pickled exception of the task after the last result; None if none failed.
    """

    node: str
    results: bytes
    error: bytes | None = None


def open_stage(stage: bytes) -> Exception | None:
    """Open the sources of a stage on this node; why it is not possible, or None."""
    try:
        _tasks(stage)
    except Exception as error:
        return _transportable(error)
    return None


def run_batch(stage: bytes, numbers: Sequence[int], device: str) -> Batch:
    """Run the tasks of these numbers, one after another on one core.

    An error is returned, not raised: it would come again wherever the task is repeated.
    """
    import torch

    torch.set_num_threads(1)
    use_device(torch.device(device))
    node, results, name = socket.gethostname(), [], ""
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            tasks = _tasks(stage)
            for number in numbers:
                name = tasks[number].name
                results.append(tasks[number].run())
        return Batch(node, _pickled(results))
    except (MemoryError, torch.OutOfMemoryError):
        error: Exception = ClusterError(NO_MEMORY.format(node=node, names=name))
    except Exception as raised:
        raised.add_note(f"on node {node}")
        error = _transportable(raised)
    return Batch(node, _pickled(results), pickle.dumps(error))


@lru_cache(maxsize=1)
def _tasks(stage: bytes) -> list[Task[Any]]:
    """The tasks of a stage, whose sources stay open until the next one; paths are those of the one that started it."""
    content = io.BytesIO(stage)
    with suppress(OSError):  # then relative paths are refused by who reads them, with their names
        os.chdir(pickle.load(content))  # from the process that started the work
    return pickle.load(content)


class _Pickler(pickle.Pickler):
    """Pickles tensors with their own values only, on the CPU: a view would bring all of the tensor that it is of."""

    def reducer_override(self, value: Any) -> Any:
        """How a value is pickled, if not as usual."""
        import torch

        if type(value) is torch.Tensor and (
            value.device.type != "cpu" or value.untyped_storage().nbytes() > value.nbytes
        ):
            return value.detach().cpu().clone().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented


def _pickled(results: list[Any]) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(results)
    return buffer.getvalue()


def _transportable(error: Exception) -> Exception:
    """The exception, or one that says the same if it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
