"""Where per-matrix work runs: threads, memory, progress, and what is kept when it is killed."""

from eckart.engine.journal import Journal, Record, journal_of, run_kept
from eckart.engine.progress import Progress, Silent
from eckart.engine.run import Run
from eckart.engine.tasks import Task, run_tasks

__all__ = ["Journal", "Progress", "Record", "Run", "Silent", "Task", "journal_of", "run_kept", "run_tasks"]
