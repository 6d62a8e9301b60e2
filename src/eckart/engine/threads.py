"""Tasks on several threads of this process, within a memory limit.

One thread per matrix beats all threads on one matrix: decompositions of a few thousand columns do not scale, and there
are many matrices. Each worker therefore computes single-threaded, unless there is only one worker. The caller's own
thread does the tiny tasks: they run mostly in the interpreter, where two threads only take turns and lose time over it.
"""

import queue
import threading
from collections import deque
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from threadpoolctl import threadpool_limits

from eckart.engine.execution import Execution, use_device
from eckart.engine.task import Task

if TYPE_CHECKING:
    import torch

TINY_BYTES = 2**16  # read by a task that takes about a millisecond

T = TypeVar("T")


class Threads:
    """The `Executor` of one process.

    A task waits while it would exceed `execution.memory_bytes` together with those in progress; a single task always
    runs. Leaving the iterator early, or Ctrl-C, does not wait for tasks in progress; an error does.
    """

    def run(self, tasks: Sequence[Task[T]], execution: Execution) -> Generator[tuple[Task[T], T], None, None]:
        """Results as they finish: see `Executor.run`."""
        ordered = sorted(tasks, key=lambda task: -task.memory_bytes)
        tiny = deque(task for task in ordered if task.nbytes < TINY_BYTES)
        shared = min(execution.worker_count(), len(tasks)) > 1
        pool = _Pool([task for task in ordered if task.nbytes >= TINY_BYTES], execution, shared=shared)
        try:
            for _ in tasks:
                yield pool.next_result(wait=not tiny) or _done(tiny.popleft())
        except Exception:
            pool.stop(wait=True)
            raise
        finally:
            pool.stop(wait=False)


def _done(task: Task[T]) -> tuple[Task[T], T]:
    return task, task.run()


class _Pool(Generic[T]):
    """Threads that take tasks in order; daemon threads, so an interrupted program does not wait for them.

    Where tasks have `shared` cores, each computes on one.
    """

    def __init__(self, tasks: Sequence[Task[T]], execution: Execution, *, shared: bool) -> None:
        self._waiting = list(reversed(tasks))
        self._used_bytes = 0
        self._limit = execution.memory_bytes
        self._condition = threading.Condition()
        self._finished: queue.SimpleQueue[tuple[Task[T], T] | BaseException] = queue.SimpleQueue()
        import torch

        self._threads_before = torch.get_num_threads()
        threads = 1 if shared else self._threads_before
        # torch's number of threads is set on each worker and on this one; that of NumPy's BLAS applies to the process.
        self._numpy_threads = threadpool_limits(limits=1 if shared else None, user_api="blas")
        torch.set_num_threads(threads)
        count, devices = min(execution.worker_count(), len(tasks)), execution.devices()
        self._workers = [
            threading.Thread(target=self._work, args=(threads, devices[index % len(devices)]), daemon=True)
            for index in range(count)
        ]
        for worker in self._workers:
            worker.start()

    def next_result(self, *, wait: bool) -> tuple[Task[T], T] | None:
        """A task that finished, and its result; None if there is none yet and the caller does not `wait`.

        Raises:
            BaseException: what the task raised.
        """
        while True:
            try:
                # With a timeout, because Ctrl-C does not interrupt an endless wait on Windows.
                finished = self._finished.get(wait, timeout=0.2)
            except queue.Empty:
                if not wait:
                    return None
                continue
            if isinstance(finished, BaseException):
                raise finished
            return finished

    def stop(self, *, wait: bool) -> None:
        """Start no further tasks."""
        with self._condition:
            self._waiting.clear()
            self._condition.notify_all()
        import torch

        if wait:
            for worker in self._workers:
                worker.join()
        self._numpy_threads.restore_original_limits()
        torch.set_num_threads(self._threads_before)

    def _work(self, threads: int, device: "torch.device") -> None:
        import torch

        torch.set_num_threads(threads)
        use_device(device)
        while (task := self._take()) is not None:
            try:
                self._finished.put(_done(task))
            except BaseException as error:
                self._finished.put(error)
            with self._condition:
                self._used_bytes -= task.memory_bytes
                self._condition.notify_all()

    def _take(self) -> Task[T] | None:
        """The next task that fits in memory, or None when there is none left."""
        with self._condition:
            while self._waiting:
                for index in range(len(self._waiting) - 1, -1, -1):
                    needed = self._waiting[index].memory_bytes
                    if self._used_bytes == 0 or self._used_bytes + needed <= self._limit:
                        self._used_bytes += needed
                        return self._waiting.pop(index)
                self._condition.wait()
            return None
