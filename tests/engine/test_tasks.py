"""Work over threads: everything done, in bounded memory, stopped when it must be."""

import threading
import time

import pytest
import torch

from eckart.engine import Execution, NoProgress, Task, run_tasks
from eckart.engine.threads import TINY_BYTES

READ = TINY_BYTES  # what a task reads that is worth a thread of its own
PATIENCE = 20  # seconds that a test waits for what must happen at once


class Told(NoProgress):
    """What was told, and from which threads."""

    def __init__(self):
        self.calls, self.threads = [], set()

    def _tell(self, *call):
        self.calls.append(call)
        self.threads.add(threading.get_ident())

    def start(self, stage, total, unit):
        self._tell("start", stage, total, unit)

    def update(self, amount, detail=""):
        self._tell("update", amount, detail)

    def finish(self):
        self._tell("finish")


class Meter:
    """Counts what tasks hold at once."""

    def __init__(self):
        self.held = self.most = self.running = self.most_running = self.begun = 0
        self._lock = threading.Lock()

    def task(self, name, nbytes, seconds=0.002):
        def call():
            with self._lock:
                self.begun += 1
                self.held += nbytes
                self.running += 1
                self.most, self.most_running = max(self.most, self.held), max(self.most_running, self.running)
            time.sleep(seconds)
            with self._lock:
                self.held -= nbytes
                self.running -= 1
            return name

        return Task(name, READ, nbytes, call)


def results(tasks, **options):
    return {task.name: result for task, result in run_tasks(tasks, stage="test", execution=Execution(**options))}


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_every_task_is_done_once_and_its_result_handed_out(workers, count):
    meter = Meter()
    tasks = [meter.task(f"t{i}", i, seconds=0) for i in range(count)]
    assert results(tasks, workers=workers) == {task.name: task.name for task in tasks}
    assert meter.begun == count


def test_tasks_run_at_the_same_time():
    meeting = threading.Barrier(3, timeout=PATIENCE)
    tasks = [Task(f"t{i}", READ, 1, meeting.wait) for i in range(3)]
    assert len(results(tasks, workers=3)) == 3  # no one could have left the meeting alone


def test_the_largest_task_goes_first():
    order = []
    tasks = [Task(f"t{size}", 1, size, lambda size=size: order.append(size)) for size in (3, 9, 1, 7)]
    results(tasks, workers=1)
    assert order == [9, 7, 3, 1]


@pytest.mark.parametrize("limit", [10, 25, 60])
def test_tasks_never_hold_more_than_the_budget_together(limit):
    meter = Meter()
    results([meter.task(f"t{i}", 1 + i % 10) for i in range(40)], workers=6, memory_bytes=limit)
    assert meter.most <= limit
    assert meter.begun == 40


def test_a_task_larger_than_the_budget_runs_alone():
    meter = Meter()
    tasks = [meter.task("giant", 1000), *(meter.task(f"t{i}", 10) for i in range(10))]
    assert len(results(tasks, workers=4, memory_bytes=25)) == 11
    assert meter.most == 1000  # and nothing beside it


def test_one_worker_does_all_tiny_tasks_and_the_others_do_the_rest() -> None:
    threads: dict[str, set[int]] = {"tiny": set(), "large": set()}
    meeting = threading.Barrier(2, timeout=PATIENCE)
    tasks = [Task(f"tiny {i}", READ - 1, 1, lambda: threads["tiny"].add(threading.get_ident())) for i in range(50)]
    tasks += [
        Task(f"large {i}", READ, 1, lambda: (threads["large"].add(threading.get_ident()), meeting.wait()))
        for i in range(2)
    ]
    assert len(results(tasks, workers=2)) == 52
    assert [len(ids) for ids in threads.values()] == [1, 2]


def test_small_tasks_pass_one_that_has_to_wait():
    released = threading.Event()
    seen = []
    tasks = [
        Task("holder", READ, 60, lambda: released.wait(PATIENCE)),
        Task("too large beside it", READ, 50, lambda: seen.append("large")),
        Task("fits beside it", READ, 30, lambda: (seen.append("small"), released.set())),
    ]
    results(tasks, workers=2, memory_bytes=100)
    assert seen == ["small", "large"]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_error_stops_what_has_not_begun_and_is_raised_as_it_was(workers):
    meter = Meter()
    error = RuntimeError("this matrix is broken")

    def fail():
        raise error

    tasks = [Task("broken", READ, 100, fail), *(meter.task(f"t{i}", 1, seconds=0.02) for i in range(60))]
    with pytest.raises(RuntimeError, match="this matrix is broken") as raised:
        results(tasks, workers=workers)
    assert raised.value is error
    begun = meter.begun
    assert begun < 60
    time.sleep(0.1)
    assert meter.begun == begun
    assert meter.running == 0  # those that ran were waited for


def test_leaving_the_iterator_starts_nothing_more_and_waits_for_nothing():
    meter, hold = Meter(), threading.Event()
    tasks = [Task("slow", READ, 100, lambda: hold.wait(PATIENCE)), *(meter.task(f"t{i}", 1, 0.02) for i in range(60))]
    iterator = run_tasks(tasks, stage="test", execution=Execution(workers=3))
    next(iterator)
    before = time.perf_counter()
    iterator.close()
    assert time.perf_counter() - before < PATIENCE / 2  # the slow one is still running
    time.sleep(0.1)
    begun = meter.begun
    assert begun < 60
    time.sleep(0.1)
    assert meter.begun == begun
    hold.set()


def test_nothing_begins_before_the_first_result_is_asked_for():
    meter = Meter()
    iterator = run_tasks([meter.task("t", 1)], stage="test", execution=Execution(workers=2))
    time.sleep(0.05)
    assert meter.begun == 0
    assert len(list(iterator)) == 1


@pytest.mark.parametrize("ends", ["well", "with an error", "early"])
def test_the_thread_count_of_torch_is_restored(ends):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    inside = []
    tasks = [Task(f"t{i}", 1, 1, lambda: inside.append(torch.get_num_threads())) for i in range(4)]
    if ends == "with an error":
        tasks.append(Task("broken", 1, 0, lambda: 1 / 0))
    iterator = run_tasks(tasks, stage="test", execution=Execution(workers=3))
    try:
        if ends == "early":
            next(iterator)
            iterator.close()
        elif ends == "well":
            list(iterator)
        else:
            with pytest.raises(ZeroDivisionError):
                list(iterator)
        assert torch.get_num_threads() == 2
        seen = []
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert seen == [2]
        assert set(inside) == {1}
    finally:
        torch.set_num_threads(before)


def test_a_single_worker_has_all_the_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert results([Task("t", 1, 1, torch.get_num_threads)], workers=1) == {"t": 2}
    finally:
        torch.set_num_threads(before)


def test_progress_is_reported_from_one_thread_in_order():
    told = Told()
    results([Task(f"t{i}", 10 + i, 1, lambda: None) for i in range(5)], workers=3, progress=told)
    first, *middle, last = told.calls
    assert first == ("start", "test", 60, "bytes")
    assert last == ("finish",)
    assert {(name, nbytes) for _, nbytes, name in middle} == {(f"t{i}", 10 + i) for i in range(5)}
    assert told.threads == {threading.get_ident()}


def test_progress_is_finished_even_after_an_error():
    told = Told()
    with pytest.raises(ZeroDivisionError):
        results([Task("t", 1, 1, lambda: 1 / 0)], workers=1, progress=told)
    assert told.calls[-1] == ("finish",)
