"""One piece of work, and where pieces of work are done."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from eckart.engine.execution import Execution

T = TypeVar("T")


@dataclass(frozen=True)
class Task(Generic[T]):
    """One piece of work.

    Attributes:
        name: name of the matrix.
        nbytes: bytes to read, for progress.
        memory_bytes: peak memory.
        call: does the work, on a worker thread or on another machine. What it refers to can be pickled and contains no
            weights: sources open their files where they are read.
    """

    name: str
    nbytes: int
    memory_bytes: int
    call: Callable[[], T]

    def run(self) -> T:
        """Do the work; an error is given the name of the matrix, unless its message has it."""
        try:
            return self.call()
        except Exception as error:
            if self.name not in str(error):
                error.add_note(f"while processing {self.name}")
            raise


class Executor(Protocol):
    """Where tasks are done: on threads of this process, or on the nodes of a cluster."""

    def run(self, tasks: Sequence[Task[T]], execution: Execution) -> Generator[tuple[Task[T], T], None, None]:
        """Do all tasks, the largest first, and yield each with its result as it finishes.

        The first error stops the rest and is raised here; closing the iterator starts no further tasks.
        """
        ...
