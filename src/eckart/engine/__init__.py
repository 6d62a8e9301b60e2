"""Where per-matrix work runs: threads, memory, progress, and what is kept when it is killed."""

from eckart.engine.execution import Execution
from eckart.engine.journal import Journal, Record, journal_of, run_kept
from eckart.engine.progress import Progress, Silent
from eckart.engine.tasks import Task, run_tasks

__all__ = ["Execution", "Journal", "Progress", "Record", "Silent", "Task", "journal_of", "run_kept", "run_tasks"]
