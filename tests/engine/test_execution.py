"""The circumstances of a run: where, on how many threads, from which random start."""

import os

import pytest
import torch

from eckart.engine import Execution
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
