"""Independent work on many matrices, on several threads, within a memory limit.

One thread per matrix beats all threads on one matrix: decompositions of a few thousand columns do not scale, and there
are many matrices. Each worker therefore computes single-threaded, unless there is only one worker. One worker does all
tiny tasks: they run mostly in the interpreter, where two threads only take turns and lose time over it.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from threadpoolctl import threadpool_limits

from eckart.engine.execution import Execution

TINY_BYTES = 2**16  # read by a task that takes about a millisecond

T = TypeVar("T")


@dataclass(frozen=True)
class Task(Generic[T]):
    """One piece of work.

    Attributes:
        name: name of the matrix.
        nbytes: bytes to read, for progress.
        memory_bytes: peak memory.
        call: does the work, on a worker thread.
    """

    name: str
    nbytes: int
    memory_bytes: int
    call: Callable[[], T]


def run_tasks(tasks: Sequence[Task[T]], *, stage: str, execution: Execution) -> Iterator[tuple[Task[T], T]]:
    """Run all tasks, the largest first, and yield results as they finish.

    A task waits while it would exceed `execution.memory_bytes` together with those in progress; a single task always
    runs. The first error stops the rest and is raised here. Leaving the iterator early, or Ctrl-C, starts no further
    tasks and does not wait for those in progress.
    """
    execution.progress.start(stage, sum(task.nbytes for task in tasks), "bytes")
    pool = _Pool(sorted(tasks, key=lambda task: (_is_tiny(task), -task.memory_bytes)), execution)
    try:
        for _ in tasks:
            task, result, error = pool.next_result()
            if error is not None:
                pool.stop(wait=True)
                raise error
            execution.progress.update(task.nbytes, task.name)
            yield task, result
    finally:
        pool.stop(wait=False)
        execution.progress.finish()


class _Pool(Generic[T]):
    """Threads that take tasks in order; daemon threads, so an interrupted program does not wait for them."""

    def __init__(self, tasks: Sequence[Task[T]], execution: Execution) -> None:
        self._waiting = list(reversed(tasks))
        self._used_bytes = 0
        self._tiny_worker: int | None = None
        self._limit = execution.memory_bytes
        self._condition = threading.Condition()
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        import torch

        self._threads_before = torch.get_num_threads()
        count = min(execution.worker_count(), max(len(tasks), 1))
        threads = 1 if count > 1 else self._threads_before
        # torch's number of threads is set on each worker; that of NumPy's BLAS applies to the process.
        self._numpy_threads = threadpool_limits(limits=1 if count > 1 else None, user_api="blas")
        self._workers = [threading.Thread(target=self._work, args=(threads,), daemon=True) for _ in range(count)]
        for worker in self._workers:
            worker.start()

    def next_result(self) -> tuple[Task[T], T, BaseException | None]:
        """Wait for a task to finish; with a timeout, because Ctrl-C does not interrupt an endless wait on Windows."""
        while True:
            try:
                return self._done.get(timeout=0.2)
            except queue.Empty:
                continue

    def stop(self, *, wait: bool) -> None:
        """Start no further tasks."""
        with self._condition:
            self._waiting.clear()
            self._condition.notify_all()
        import torch

        if wait:
            for worker in self._workers:
                worker.join()
        torch.set_num_threads(self._threads_before)
        self._numpy_threads.restore_original_limits()

    def _work(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        while (task := self._take()) is not None:
            try:
                self._done.put((task, task.call(), None))
            except BaseException as error:
                self._done.put((task, None, error))
            with self._condition:
                self._used_bytes -= task.memory_bytes
                self._condition.notify_all()

    def _take(self) -> Task[T] | None:
        """The next task that fits in memory, or None when there is none left for this worker."""
        worker = threading.get_ident()
        with self._condition:
            while self._waiting and not (_is_tiny(self._waiting[-1]) and self._tiny_worker not in (None, worker)):
                for index in range(len(self._waiting) - 1, -1, -1):
                    needed, tiny = self._waiting[index].memory_bytes, _is_tiny(self._waiting[index])
                    if tiny and self._tiny_worker not in (None, worker):
                        break  # those that follow are tiny too
                    if self._used_bytes == 0 or self._used_bytes + needed <= self._limit:
                        self._used_bytes += needed
                        self._tiny_worker = worker if tiny else self._tiny_worker
                        return self._waiting.pop(index)
                self._condition.wait()
            return None


def _is_tiny(task: Task[T]) -> bool:
    return task.nbytes < TINY_BYTES
