"""Independent work on many matrices, by the executor that an `Execution` chooses, with its progress."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from eckart.engine.cluster import RayCluster
from eckart.engine.execution import Execution
from eckart.engine.task import Executor, Task
from eckart.engine.threads import Threads

T = TypeVar("T")


def run_tasks(tasks: Sequence[Task[T]], *, stage: str, execution: Execution) -> Iterator[tuple[Task[T], T]]:
    """Run all tasks, the largest first, and yield results as they finish.

    The first error stops the rest and is raised here. Leaving the iterator early, or Ctrl-C, starts no further tasks
    and does not wait for those in progress.
    """
    executor: Executor = Threads() if execution.ray is None else RayCluster()
    execution.progress.start(stage, sum(task.nbytes for task in tasks), "bytes")
    results = executor.run(tasks, execution)
    try:
        for task, result in results:
            execution.progress.update(task.nbytes, task.name)
            yield task, result
    finally:
        results.close()
        execution.progress.finish()
