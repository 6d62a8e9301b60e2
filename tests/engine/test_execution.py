"""The circumstances of a run: where, on how many threads, from which random start."""

import os
import pickle
import threading

import pytest
import torch

from eckart.engine import Execution, NoProgress, Task, run_tasks
from eckart.engine.threads import TINY_BYTES
from eckart.errors import OptionError


def test_one_worker_per_core_by_default():
    assert Execution(device="cpu").worker_count() == len(os.sched_getaffinity(0))
    assert Execution(workers=3).worker_count() == 3


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_refused_rather_than_waited_for(workers):
    with pytest.raises(OptionError, match=f"`workers` must be at least 1, got {workers}"):
        Execution(workers=workers).worker_count()


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:x", "", "cpu:first", "mps"])
def test_a_device_that_is_not_known_is_refused(device):
    with pytest.raises(OptionError, match="must be auto, cpu, cuda or cuda:N"):
        Execution(device=device).torch_device()


def test_a_gpu_that_is_not_there_is_refused():
    beyond = torch.cuda.device_count()
    with pytest.raises(OptionError, match=f"this machine has {beyond} CUDA devices; use `device=cpu`"):
        Execution(device=f"cuda:{beyond}").torch_device()


def test_the_device_is_the_cpu_where_asked_for_or_where_there_is_nothing_else():
    assert Execution(device="cpu").torch_device() == torch.device("cpu")
    assert Execution().torch_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_matrix_starts_from_the_same_randomness_whenever_it_is_worked_on():
    def start(run, name):
        return torch.rand(8, generator=run.generator(name))

    first = start(Execution(seed=1), "layer.0")
    assert torch.equal(first, start(Execution(seed=1, workers=7), "layer.0"))
    assert not torch.equal(first, start(Execution(seed=1), "layer.1"))
    assert not torch.equal(first, start(Execution(seed=2), "layer.0"))


def test_each_of_several_devices_has_one_worker_whose_tasks_compute_on_it():
    execution = Execution(device="cpu:0,cpu:1")  # in place of two GPUs
    assert execution.worker_count() == 2
    meeting = threading.Barrier(2, timeout=20)

    def where() -> torch.device:
        meeting.wait()
        return execution.torch_device()

    tasks = [Task(f"t{i}", TINY_BYTES, 1, where) for i in range(4)]
    found = [device for _, device in run_tasks(tasks, stage="test", execution=execution)]
    assert sorted(device.index for device in found) == [0, 0, 1, 1]


def test_all_gpus_of_the_machine_are_used_unless_some_are_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpus = [torch.device("cuda", number) for number in range(3)]
    assert Execution(device="cuda").devices() == Execution().devices() == gpus
    assert Execution(device="cuda").worker_count() == 3
    assert Execution(device="cuda:0,cuda:2").devices() == [gpus[0], gpus[2]]
    with pytest.raises(OptionError, match="`device=cuda:3`: this machine has 3 CUDA devices"):
        Execution(device="cuda:0,cuda:3").check()


def test_what_is_sent_to_a_worker_elsewhere_reports_no_progress():
    sent = pickle.loads(pickle.dumps(Execution(device="cpu", seed=3, progress=Unsendable())))
    assert sent == Execution(device="cpu", seed=3, progress=sent.progress)
    assert type(sent.progress) is NoProgress


class Unsendable(NoProgress):
    def __reduce__(self):
        raise AssertionError
