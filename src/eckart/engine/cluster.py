"""Tasks on the nodes of a Ray cluster, each of which opens the sources itself.

What is sent is a description of the work: sources by their paths, names of tensors, options. A stage is pickled once,
its tasks by their numbers. Results come back to this process, which stores them; Ray repeats what a lost node was
working on. Tiny matrices are sent in batches.
"""

import io
import math
import pickle
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from eckart.engine.connection import Node, head_answers, lost_head, nodes, on_each
from eckart.engine.execution import Execution
from eckart.engine.node import NO_MEMORY, Batch, open_stage, run_batch
from eckart.engine.task import Task
from eckart.errors import ClusterError

BATCH_BYTES = 2**26  # read by a batch of small tasks, which then takes about a second
BATCHES = 4  # that each core gets at least, if there are enough tasks
RETRIES = 3  # of a task whose worker was lost
SILENT_SECONDS = 10  # after which a head that refuses connections is lost

T = TypeVar("T")
_Cached = type(lru_cache(len))


class RayCluster:
    """The `Executor` of the cluster that this process is connected to; see `connect`."""

    def run(self, tasks: Sequence[Task[T]], execution: Execution) -> Generator[tuple[Task[T], T], None, None]:
        """Results as they finish: see `Executor.run`.

        Raises:
            ClusterError: no node is left, a node ran out of memory, or the head is gone.
            EckartError: a source cannot be read on a node, which is named.
        """
        if not tasks:
            return
        import ray
        from ray.exceptions import RayError

        ordered = sorted(tasks, key=lambda task: -task.memory_bytes)
        found, stage = nodes(), ray.put(_pickled(ordered))
        _open_on_each(found, stage)
        device, slots = _device(found, execution)
        waiting = deque(_batches(ordered, slots))
        limit = execution.workers or 2 * slots  # of which half wait, so that no core does
        most_memory = max(node.memory_bytes for node in found)
        remote = ray.remote(run_batch)
        running: dict[Future[Batch], tuple[Any, list[int]]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    batch = waiting.popleft()
                    submitted = remote.options(
                        num_cpus=1,
                        num_gpus=int(device == "cuda"),
                        memory=min(max(ordered[number].memory_bytes for number in batch), most_memory),
                        max_retries=RETRIES,
                        retry_exceptions=False,
                        scheduling_strategy="SPREAD",
                    ).remote(stage, batch, device)
                    running[submitted.future()] = submitted, batch
                future = _next(running)
                _, batch = running.pop(future)
                done = _result(future, [ordered[number].name for number in batch])
                results = pickle.loads(done.results)  # from a worker that this process started
                yield from zip([ordered[number] for number in batch], results, strict=False)
                if done.error is not None:
                    raise pickle.loads(done.error)
        except RayError as error:
            raise (lost_head() if not head_answers() else _lost(error)) from None
        finally:
            if running and ray.is_initialized() and head_answers():  # Ray would start a cluster, or wait for it
                for reference, _ in running.values():
                    ray.cancel(reference, force=True)


def _open_on_each(found: Sequence[Node], stage: Any) -> None:
    """Open all sources on every node, before the first task."""
    from ray.exceptions import RayError

    for node, error in zip(found, on_each(found, open_stage, stage), strict=True):
        if isinstance(error, RayError):
            raise _lost(error)
        if error is not None:
            error.args = (f"node {node.name}: {error}",)
            raise error


def _device(found: Sequence[Node], execution: Execution) -> tuple[str, int]:
    """The kind of device to compute on, and how many matrices the cluster can process at once.

    Raises:
        ClusterError: GPUs are asked for, and no node has one.
    """
    gpus = int(sum(node.gpus for node in found))
    if execution.device.startswith("cuda") and not gpus:
        msg = f"`device={execution.device}`: no node of the cluster has a GPU; use `device=cpu`"
        raise ClusterError(msg)
    if gpus and not execution.device.startswith("cpu"):
        return "cuda", gpus
    return "cpu", int(sum(node.cpus for node in found))


def _batches(ordered: Sequence[Task[Any]], slots: int) -> list[list[int]]:
    """The numbers of tasks to run together: one large one, or several small ones in a row."""
    share = BATCHES * slots
    most_bytes = min(BATCH_BYTES, sum(task.nbytes for task in ordered) // share)
    most = math.ceil(len(ordered) / share)
    batches: list[list[int]] = []
    nbytes = 0
    for number, task in enumerate(ordered):
        if not batches or nbytes + task.nbytes > most_bytes or len(batches[-1]) >= most:
            batches.append([])
            nbytes = 0
        batches[-1].append(number)
        nbytes += task.nbytes
    return batches


def _next(running: Collection[Future[Batch]]) -> Future[Batch]:
    """The first of these that finishes.

    Raises:
        ClusterError: the head is gone.
    """
    answered = time.monotonic()
    while True:
        # Not by Ray's own function, which may not return once the head is gone.
        done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
        if done:
            return done.pop()
        if head_answers():
            answered = time.monotonic()
        elif time.monotonic() - answered > SILENT_SECONDS:
            raise lost_head()


def _result(future: Future[Batch], names: Sequence[str]) -> Batch:
    """What a batch returned.

    Raises:
        ClusterError: it was lost more often than it is repeated, or for lack of memory.
    """
    from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

    listed = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    try:
        return future.result()
    except OutOfMemoryError:
        raise ClusterError(NO_MEMORY.format(node="a node", names=listed)) from None
    except WorkerCrashedError:
        msg = f"a worker was killed {RETRIES + 1} times, most likely for lack of memory; "
        raise ClusterError(msg + NO_MEMORY.format(node="its node", names=listed)) from None
    except RayTaskError as error:  # none of ours: those are returned
        msg = f"a worker failed at {listed} ({str(error).strip().splitlines()[-1]})"
        raise ClusterError(msg) from None


def _lost(error: Exception) -> ClusterError:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ClusterError(f"the Ray cluster lost work ({line}): repeat the command to resume")


def _pickled(tasks: Sequence[Task[Any]]) -> bytes:
    """A description of the tasks.

    Raises:
        ClusterError: it would contain weights.
    """
    from ray.cloudpickle import Pickler
    from torch import Tensor

    class WithoutWeights(Pickler):
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim > 1:
                msg = (
                    "weights in memory are not sent to the nodes of a cluster: save them, and give the path of a "
                    "folder or file that every node sees"
                )
                raise ClusterError(msg)
            if isinstance(value, _Cached) and "<locals>" in value.__qualname__:  # pickle looks only for global ones
                return _cached, (value.__wrapped__, value.cache_parameters()["maxsize"])
            return super().reducer_override(value)

    buffer = io.BytesIO(pickle.dumps(str(Path.cwd())))
    buffer.seek(0, io.SEEK_END)
    WithoutWeights(buffer).dump(list(tasks))
    return buffer.getvalue()


def _cached(function: Callable[..., T], maxsize: int | None) -> Callable[..., T]:
    return lru_cache(maxsize=maxsize)(function)
