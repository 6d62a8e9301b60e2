"""Independent work on many matrices, over threads, within a budget of memory.

One thread a matrix beats all threads on one matrix: decompositions of a few thousand columns do not scale, matrices
are many. Each worker therefore computes single-threaded, unless there is only one worker.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from threadpoolctl import threadpool_limits

from eckart.engine.execution import Execution

T = TypeVar("T")


@dataclass(frozen=True)
class Task(Generic[T]):
    """One piece of work.

    Attributes:
        name: of the matrix.
        nbytes: bytes that it reads, for progress.
        memory_bytes: what it holds at its peak.
        call: does it, on a worker thread.
    """

    name: str
    nbytes: int
    memory_bytes: int
    call: Callable[[], T]


def run_tasks(tasks: Sequence[Task[T]], *, stage: str, execution: Execution) -> Iterator[tuple[Task[T], T]]:
    """Do all tasks, the largest first, and hand out results as they come.

    A task waits while those running hold so much that it would pass `execution.memory_bytes`; one alone always runs.
    The first error stops the rest and is raised here. Leaving the iterator early, or Ctrl-C, starts nothing more and
    does not wait for what is running.
    """
    execution.progress.start(stage, sum(task.nbytes for task in tasks), "bytes")
    pool = _Pool(sorted(tasks, key=lambda task: -task.memory_bytes), execution)
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
    """Daemon threads that take tasks in order; daemons, so that an interrupted program need not wait for them."""

    def __init__(self, tasks: Sequence[Task[T]], execution: Execution) -> None:
        self._waiting = list(reversed(tasks))
        self._held_bytes = 0
        self._limit = execution.memory_bytes
        self._changed = threading.Condition()
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        self._threads_before = torch.get_num_threads()
        count = min(execution.worker_count(), max(len(tasks), 1))
        threads = 1 if count > 1 else self._threads_before
        # torch's threads are set on each worker; NumPy's BLAS has one number for the whole process.
        self._numpy_threads = threadpool_limits(limits=1 if count > 1 else None, user_api="blas")
        self._workers = [threading.Thread(target=self._work, args=(threads,), daemon=True) for _ in range(count)]
        for worker in self._workers:
            worker.start()

    def next_result(self) -> tuple[Task[T], T, BaseException | None]:
        """Wait for a task to end; short waits, so that Ctrl-C is heard on every platform."""
        while True:
            try:
                return self._done.get(timeout=0.2)
            except queue.Empty:
                continue

    def stop(self, *, wait: bool) -> None:
        """Start nothing more."""
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()
        if wait:
            for worker in self._workers:
                worker.join()
        torch.set_num_threads(self._threads_before)
        self._numpy_threads.restore_original_limits()

    def _work(self, threads: int) -> None:
        torch.set_num_threads(threads)
        while (task := self._take()) is not None:
            try:
                self._done.put((task, task.call(), None))
            except BaseException as error:
                self._done.put((task, None, error))
            with self._changed:
                self._held_bytes -= task.memory_bytes
                self._changed.notify_all()

    def _take(self) -> Task[T] | None:
        """The next task that fits in memory, or None when there is none left."""
        with self._changed:
            while self._waiting:
                for place in range(len(self._waiting) - 1, -1, -1):
                    needed = self._waiting[place].memory_bytes
                    if self._held_bytes == 0 or self._held_bytes + needed <= self._limit:
                        self._held_bytes += needed
                        return self._waiting.pop(place)
                self._changed.wait()
            return None
